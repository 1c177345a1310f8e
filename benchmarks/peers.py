"""`python -m benchmarks.peers --biggan-pytorch DIR --resolution R`: our training step beside the originals' own.

DIR is a checkout of the original, of which nothing is changed. Both sides have the same network with the same weights (they
go through `biggan import`), the same real images, latents and labels, batch, threads and machine, and take turns: an update of
each, again and again. An update is one D step, one G step and the average. The figures are medians over the rounds: images/s,
real images that D has seen, and the ratio to the original's update in the same round.

First, three updates in fp32 show that both train the same thing: their losses of D and G agree. For that, ours moves spectral
norm's vectors before every forward, as theirs does (`objective.power_iteration=forward`); so it does in the mode `fp32`, too.
"""

import argparse
import contextlib
import os
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from benchmarks import workers
from benchmarks.peer import Noise, Peer, Setting
from benchmarks.peer_biggan_pytorch import BN_EPS, EMA_DECAY, EPS, LR, SN_EPS, BigGANPyTorch
from benchmarks.report import report, table
from jobs import cli
from model.latents import Stream, latents, random_labels
from pipeline.batch import plan_batch
from pipeline.config import build
from pipeline.engines import Ranks, start_workers
from pipeline.initial import initial_checkpoint
from pipeline.learner import Learner
from pipeline.run import locate
from pipeline.steps import d_step, g_step

SETTINGS = {
    32: Setting(32, 64, 32, 10, 128, 0, (), ()),
    64: Setting(64, 64, 16, 1000, 120, 128, (64,), ()),
    128: Setting(128, 96, 4, 1000, 120, 128, (64,), (64,)),
    256: Setting(256, 96, 2, 1000, 140, 128, (128,), (64,)),
}
"""By resolution, with micro-batches that a CPU can take."""
MODES = {
    "fp32": {"precision": "fp32", "objective": {"power_iteration": "forward"}},
    "fp32, once a step": {"precision": "fp32"},
    "bf16": {"precision": "bf16"},
}
"""What ours is measured with. fp32: eager, and spectral norm's vectors moved as often as theirs."""
BARS = {"fp32": 1.2, "fastest": 2.0}
STEPS, LIMIT = 3, 1e-4
"""Updates whose losses are compared, and how far apart, over the larger of 1 and the loss, they may be."""


class Ours:
    """A `benchmarks.peer.Peer`: our engines (one rank, ZeRO-1), optimisers and average."""

    def __init__(self, mode: str, weights: Path, setting: Setting, ranks: Ranks, noise: Noise):
        self.name, self._noise = f"ours, {mode}", noise
        size = setting.micro_batch
        tree = {"run": "none", "total_images": size, "model": locate(str(weights)).state()["model"], "init": str(weights)}
        tree |= {"data": {"uri": "none"}, "batch": {"global_batch": size, "micro_batch": size, "norm_group": size}}
        config = build(tree | {"optim": {"g_lr": LR["G"], "d_lr": LR["D"], "eps": EPS}} | MODES[mode])
        self._learner = Learner(config, plan_batch(config.batch, 1), ranks, initial_checkpoint(config))

    def update(self, x: Tensor, y: Tensor) -> dict[str, float]:
        learner = self._learner
        values = d_step(learner.g, learner.d, [(x, y)], lambda _: self._noise(), learner.objective, 0)
        values |= g_step(learner.g, learner.d, lambda _: self._noise(), learner.objective, 0)
        learner.ema.update(learner.g.parts(), EMA_DECAY)
        return {key: float(values[key]) for key in ("loss/d", "loss/g")}


def noise_for(setting: Setting, device: torch.device) -> Noise:
    """A sequence of latents and labels that begins anew with every call of this function."""
    n, at = setting.micro_batch, -setting.micro_batch

    def draw() -> tuple[Tensor, Tensor]:
        nonlocal at
        at += n
        z = latents(0, Stream.D_STEP, at, n, setting.z_dim)
        return z.to(device), random_labels(0, Stream.D_STEP, at, n, setting.classes).to(device)

    return draw


def reals(setting: Setting, device: torch.device) -> tuple[Tensor, Tensor]:
    """One micro-batch of images x [n, 3, r, r] in -1..1 and labels y [n]."""
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(setting.micro_batch, 3, setting.resolution, setting.resolution, generator=generator) * 2 - 1
    return x.to(device), (torch.arange(setting.micro_batch) % setting.classes).to(device)


def imported(original: BigGANPyTorch, folder: Path) -> Path:
    """The original's weights as it saves them, turned into a checkpoint of ours."""
    theirs, ours = folder / "theirs", folder / "ours"
    theirs.mkdir()
    for name, network in (("G", original.g), ("D", original.d)):
        torch.save(network.state_dict(), theirs / f"{name}.pth")
    with contextlib.redirect_stdout(sys.stderr):
        code = cli.main(["import", str(theirs), str(ours), "--bn-eps", str(BN_EPS), "--sn-eps", str(SN_EPS)])
    if code:
        raise RuntimeError(f"biggan import ended with {code}")
    return ours


def same_losses(ours: Peer, original: Peer, x: Tensor, y: Tensor) -> tuple[list[dict[str, Any]], bool]:
    """Rows with the losses of `STEPS` updates on both sides, and whether all are within `LIMIT`."""
    rows, same = [], True
    for step in range(STEPS):
        mine, theirs = ours.update(x, y), original.update(x, y)
        rows.append(
            {"update": step + 1} | {f"{key}, {who}": v[key] for key in mine for who, v in (("ours", mine), ("theirs", theirs))}
        )
        same &= all(abs(mine[key] - theirs[key]) <= LIMIT * max(1.0, abs(theirs[key])) for key in mine)
    return rows, same


def race(arms: list[Peer], x: Tensor, y: Tensor, rounds: int) -> dict[str, list[float]]:
    """Seconds of each update of each arm, after one to warm up; the arms take turns."""
    seconds: dict[str, list[float]] = {arm.name: [] for arm in arms}
    for _ in range(rounds + 1):
        for arm in arms:
            began = time.perf_counter()
            arm.update(x, y)  # reads its losses, and so waits for a GPU
            seconds[arm.name].append(time.perf_counter() - began)
    return {name: taken[1:] for name, taken in seconds.items()}


def measure(setting: Setting, checkout: Path, modes: list[str], rounds: int, folder: Path) -> None:
    """The worker: prints the losses, and leaves everything in folder/figures.pt."""
    ranks = start_workers()
    x, y = reals(setting, ranks.device)
    torch.manual_seed(0)
    original = BigGANPyTorch(checkout, setting, ranks.device, noise_for(setting, ranks.device))
    weights = imported(original, folder)
    ours = [Ours(mode, weights, setting, ranks, noise_for(setting, ranks.device)) for mode in modes]
    losses, same = same_losses(ours[0], original, x, y)
    seconds = race([original, *ours], x, y, rounds)
    torch.save({"losses": losses, "same": same, "seconds": seconds, "threads": torch.get_num_threads()}, folder / "figures.pt")
    torch.distributed.destroy_process_group()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__)
    parser.add_argument("--biggan-pytorch", type=Path, metavar="DIR", required=True, help="a checkout of BigGAN-PyTorch")
    parser.add_argument("--resolution", type=int, choices=SETTINGS, default=32, help="pixels (default: 32)")
    parser.add_argument("--ch", type=int, help="width multiplier (default: 64 up to 64 px, 96 above)")
    parser.add_argument("--micro-batch", type=int, help="images in an update (default: 32 at 32 px, 4 at 128)")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES), help="of ours; the first must be fp32")
    parser.add_argument("--rounds", type=int, default=9, help="updates of each (default: 9)")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of the CPU (default: all)")
    args = parser.parse_args()
    if args.modes[0] != "fp32":
        parser.error(f"--modes {args.modes[0]} ...: begin with fp32, whose losses are compared")
    if not (args.biggan_pytorch / "train_fns.py").is_file():
        parser.error(f"--biggan-pytorch {args.biggan_pytorch}: no checkout of BigGAN-PyTorch, it has no train_fns.py")
    given = {key: value for key in ("ch", "micro_batch") if (value := getattr(args, key))}
    setting = replace(SETTINGS[args.resolution], **given)
    with tempfile.TemporaryDirectory(prefix="biggan-peers-") as name:
        folder = Path(name)
        arguments = (setting, args.biggan_pytorch.resolve(), args.modes, args.rounds, folder)
        workers.run(measure, *arguments, ranks=1, log=folder / "log", OMP_NUM_THREADS=str(args.threads))
        found = torch.load(folder / "figures.pt")
    print("\n".join(table(found["losses"])), end="\n\n")
    rows = ratios(found["seconds"], setting.micro_batch)
    fp32, fastest = rows[1]["ratio"], max(row["ratio"] for row in rows[1:])
    ok = found["same"] and fp32 >= BARS["fp32"] and fastest >= BARS["fastest"]
    figures = {"resolution": setting.resolution, "ch": setting.ch, "micro_batch": setting.micro_batch, "rounds": args.rounds}
    figures |= {
        "threads": found["threads"],
        "same losses": found["same"],
        "losses": found["losses"],
        "rows": rows,
        "bars": BARS,
    }
    report("peers", rows, figures, ok)
    return 0 if ok else 1


def ratios(seconds: dict[str, list[float]], images: int) -> list[dict[str, Any]]:
    """Rows, the original's first: what each makes of an update of `images` images."""
    base = next(iter(seconds.values()))
    rows = []
    for name, taken in seconds.items():
        each = sorted(theirs / ours for theirs, ours in zip(base, taken, strict=True))
        rows.append(
            {"step": name, "images/s": images / median(taken), "ratio": median(each), "least": each[0], "most": each[-1]}
        )
    return rows


if __name__ == "__main__":
    sys.exit(main())
