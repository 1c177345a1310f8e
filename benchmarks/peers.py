"""`python -m benchmarks.peers --biggan-pytorch DIR --studiogan DIR --resolution R`: our training step beside the originals'.

DIR is a checkout of an original, of which nothing is changed; either may be left out. Both sides have the same network, real
images, batch, threads and machine, and take turns: an update of each, again and again. An update is one D step, one G step and
the average. The figures are medians over the rounds: images/s, real images that D has seen, and the ratio to the original's
update in the same round.

Beside BigGAN-PyTorch both have the same weights (they go through `biggan import`), latents and labels, too, and first, three
updates in fp32 show that both train the same thing: their losses of D and G agree. For that, ours moves spectral norm's vectors
before every forward, as theirs does (`objective.power_iteration=forward`); so it does in the mode `fp32`, too. StudioGAN's D
sees real and fake images in two forwards, between which its vectors move, so its losses are others.
"""

import argparse
import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from benchmarks import workers
from benchmarks.peer import Noise, Peer, Setting
from benchmarks.peer_biggan_pytorch import BN_EPS, EMA_DECAY, EPS, LR, SN_EPS, BigGANPyTorch
from benchmarks.peer_studiogan import studiogan
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
    32: Setting(32, 64, 32, 10, 80, 128, (), ()),
    128: Setting(128, 96, 4, 1000, 120, 128, (64,), (64,)),
    256: Setting(256, 96, 2, 1000, 140, 128, (128,), (64,)),
}
"""By resolution, with micro-batches that a CPU can take."""
CIFAR = {"z_dim": 128, "shared_dim": 0}
"""BigGAN-PyTorch's own at 32 px."""
MODES: dict[str, dict[str, Any]] = {
    "z0": {"precision": "fp32", "zero": {"stage": 0}},
    "fp32": {"precision": "fp32", "objective": {"power_iteration": "forward"}},
    "fp32, once a step": {"precision": "fp32"},
    "bf16": {"precision": "bf16"},
}
"""What ours is measured with. fp32: spectral norm's vectors moved as often as theirs."""
BARS = {"fp32": 1.2, "fastest": 2.0}
STEPS, LIMIT = 3, 1e-4
"""Updates whose losses are compared, and how far apart, over the larger of 1 and the loss, they may be."""


class Ours:
    """A `benchmarks.peer.Peer`: our engines (one rank, ZeRO-1), optimisers and average."""

    def __init__(self, mode: str, model: dict[str, Any], init: Path | None, setting: Setting, ranks: Ranks):
        self.name, self._noise = f"ours, {mode}", noise_for(setting, ranks.device)
        size = setting.micro_batch
        tree = {"run": "none", "total_images": size, "model": model, "init": init and str(init), "data": {"uri": "none"}}
        tree |= {"batch": {"global_batch": size, "micro_batch": size, "norm_group": size}}
        config = build(tree | {"optim": {"g_lr": LR["G"], "d_lr": LR["D"], "eps": EPS}} | MODES[mode])
        self._learner = Learner(config, plan_batch(config.batch, 1), ranks, initial_checkpoint(config))

    def update(self, x: Tensor, y: Tensor) -> dict[str, float]:
        learner = self._learner
        values = d_step(learner.g, learner.d, [(x, y)], lambda _: self._noise(), learner.objective, 0)
        values |= g_step(learner.g, learner.d, lambda _: self._noise(), learner.objective, 0)
        learner.ema.update(learner.g.parts(), EMA_DECAY)
        return {key: float(values[key]) for key in ("loss/d", "loss/g")}


def noise_for(setting: Setting, device: torch.device) -> Noise:
    """A sequence of latents and labels, the same for everybody who asks."""
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


def beside_biggan_pytorch(
    checkout: Path, setting: Setting, modes: Iterable[str], ranks: Ranks, folder: Path
) -> tuple[list[Peer], list[dict[str, Any]], bool]:
    """The original and ours, after the updates whose losses the rows show; and whether those agree."""
    original = BigGANPyTorch(checkout, setting, ranks.device, noise_for(setting, ranks.device))
    weights = imported(original, folder)
    model = locate(str(weights)).state()["model"]
    ours = [Ours(mode, model, weights, setting, ranks) for mode in modes]
    rows, same = same_losses(ours[0], original, *reals(setting, ranks.device))
    return [original, *ours], rows, same


def beside_studiogan(
    checkout: Path, setting: Setting, modes: Iterable[str], ranks: Ranks, folder: Path
) -> tuple[list[Peer], list[dict[str, Any]], bool]:
    """The original and ours."""
    sizes = {key: value for key, value in asdict(setting).items() if key not in ("micro_batch", "classes", "d_steps")}
    model = sizes | {"num_classes": setting.classes, "d_relu_shortcut": True, "sn_eps": SN_EPS}
    return [studiogan(checkout, setting), *(Ours(mode, model, None, setting, ranks) for mode in modes)], [], True


PROJECTS = {"biggan-pytorch": beside_biggan_pytorch, "studiogan": beside_studiogan}


def same_losses(ours: Peer, original: Peer, x: Tensor, y: Tensor) -> tuple[list[dict[str, Any]], bool]:
    """Rows with the losses of `STEPS` updates on both sides, and whether all are within `LIMIT`."""
    rows, same = [], True
    for step in range(STEPS):
        mine, theirs = ours.update(x, y), original.update(x, y)
        assert mine and theirs
        row: dict[str, Any] = {"update": step + 1}
        for key in mine:
            row |= {f"{key}, ours": mine[key], f"{key}, theirs": theirs[key]}
            same &= abs(mine[key] - theirs[key]) <= LIMIT * max(1.0, abs(theirs[key]))
        rows.append(row)
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


def measure(project: str, checkout: Path, setting: Setting, modes: list[str], rounds: int, folder: Path) -> None:
    """The worker: leaves what it has found in folder/figures.pt."""
    ranks = start_workers()
    torch.manual_seed(0)
    arms, losses, same = PROJECTS[project](checkout, setting, modes, ranks, folder)
    seconds = race(arms, *reals(setting, ranks.device), rounds)
    torch.save({"losses": losses, "same": same, "seconds": seconds, "threads": torch.get_num_threads()}, folder / "figures.pt")
    torch.distributed.destroy_process_group()


def ratios(seconds: dict[str, list[float]], images: int) -> list[dict[str, Any]]:
    """Rows, the original's first: what each makes of an update of `images` images."""
    base = next(iter(seconds.values()))
    rows = []
    for name, taken in seconds.items():
        each = sorted(theirs / ours for theirs, ours in zip(base, taken, strict=True))
        row = {"step": name, "images/s": images / median(taken), "ratio": median(each)}
        rows.append(row | {"least": each[0], "most": each[-1]})
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__)
    for project in PROJECTS:
        parser.add_argument(f"--{project}", type=Path, metavar="DIR", help=f"a checkout of {project}")
    parser.add_argument("--resolution", type=int, choices=SETTINGS, default=32, help="pixels (default: 32)")
    parser.add_argument("--ch", type=int, help="width multiplier (default: 64 at 32 px, else 96)")
    parser.add_argument("--micro-batch", type=int, help="images in an update (default: 32 at 32 px, 4 at 128, 2 at 256)")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES), help="of ours; the first must be fp32")
    parser.add_argument("--rounds", type=int, default=9, help="updates of each (default: 9)")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of the CPU (default: all)")
    args = parser.parse_args()
    checkouts = {project: found for project in PROJECTS if (found := getattr(args, project.replace("-", "_")))}
    if not checkouts:
        parser.error("nothing to measure beside: type --biggan-pytorch DIR or --studiogan DIR, checkouts of theirs")
    for project, known in (("biggan-pytorch", "train_fns.py"), ("studiogan", "src/worker.py")):
        if project in checkouts and not (checkouts[project] / known).is_file():
            parser.error(f"--{project} {checkouts[project]}: no {known} in it; name a checkout")
    if args.modes[0] != "fp32":
        parser.error(f"--modes {args.modes[0]} ...: begin with fp32, whose losses are compared")
    given = {key: value for key in ("ch", "micro_batch") if (value := getattr(args, key))}
    setting, found, ok = replace(SETTINGS[args.resolution], **given), {}, True
    for project, checkout in checkouts.items():
        own = replace(setting, **CIFAR) if (project, args.resolution) == ("biggan-pytorch", 32) else setting
        with tempfile.TemporaryDirectory(prefix="biggan-peers-") as name:
            arguments = (project, checkout.resolve(), own, args.modes, args.rounds, Path(name))
            workers.run(measure, *arguments, ranks=1, log=Path(name) / "log", OMP_NUM_THREADS=str(args.threads))
            figures = torch.load(Path(name) / "figures.pt")
        rows = ratios(figures.pop("seconds"), setting.micro_batch)
        fastest = max(row["ratio"] for row in rows[1:])
        ok &= figures["same"] and rows[1]["ratio"] >= BARS["fp32"] and fastest >= BARS["fastest"]
        found[project] = figures | {"setting": asdict(own), "rows": rows}
        if figures["losses"]:
            print("\n".join(table(figures["losses"])), end="\n\n")
    said = {"rounds": args.rounds, "bars": BARS, **found}
    report("peers", [row for figures in found.values() for row in figures["rows"]], said, ok)
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
