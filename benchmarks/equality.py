"""`python -m benchmarks.equality --stages 1,2`: the two ZeRO engines against plain autograd, and 2 processes against 1.

A tiny BigGAN trains five rounds (two D steps and a G step each) in fp32: once by plain autograd over whole global
batches, and through engines, accumulation, cross-rank batch norm and the data stream. Compared are the parameters (norm of
the difference over norm, per network) and which samples, labels, flips and latents each global batch held.
"""

import argparse
import hashlib
import json
import os
import socket
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from benchmarks.patterns import pack_patterns
from benchmarks.report import report
from model.batchnorm import set_group
from model.biggan import Discriminator, Generator
from model.config import ModelConfig
from model.latents import Stream as Numbers
from model.latents import latents, random_labels
from model.losses import hinge_d, hinge_g
from model.spectral import power_iteration
from pipeline.batch import BatchConfig, plan_batch
from pipeline.index import load_manifest
from pipeline.loop import on_device
from pipeline.schedule import OptimConfig, make_optimizer
from pipeline.stream import DataConfig, MicroBatch, Stream

ROUNDS, D_STEPS, SEED = 5, 2, 3
# Rounding moves a few activations across the kink of a ReLU, which changes a gradient by about 1e-3 of itself: the same
# plain run on 1 and on 2 threads differs by that. Steps are small enough to keep this below the limits, and `moved`
# (how far training has carried the parameters) shows that a wrong gradient would stand out.
G_LR, D_LR = 2e-4, 1e-5
MODEL = ModelConfig(resolution=32, num_classes=4, channels=3, ch=8, shared_dim=8, z_dim=32)
PLAIN_LIMIT, RANKS_LIMIT = 1e-6, 1e-5


@dataclass(frozen=True)
class Case:
    """One way to train the same thing. All share a global batch of 32 and batch-norm groups of 8."""

    name: str
    uri: str
    processes: int = 2
    stage: int = 1
    micro_batch: int = 4
    optimizer: str = "sgd"


def networks() -> tuple[Generator, Discriminator]:
    torch.manual_seed(SEED)
    return Generator(MODEL), Discriminator(MODEL)


def fingerprint(batch: MicroBatch) -> dict[int, str]:
    """Position -> what stood there."""
    rows = zip(batch.positions.tolist(), batch.samples.tolist(), batch.labels.tolist(), batch.flips.tolist(), strict=True)
    return {position: f"{sample}/{label}/{flip}" for position, sample, label, flip in rows}


def stream(case: Case, micro_batch: int, rank: int, world_size: int) -> Stream:
    return Stream(
        DataConfig(case.uri, flip=True),
        load_manifest(case.uri),
        seed=SEED,
        global_batch=32,
        micro_batch=micro_batch,
        rank=rank,
        world_size=world_size,
    )


def plain(case: Case) -> dict[str, Tensor]:
    """The reference: whole batches, torch's own optimiser, no engine; returns the parameters."""
    g, d = networks()
    config = OptimConfig(optimizer=case.optimizer)  # type: ignore[arg-type]
    opt_g, opt_d = make_optimizer(config, g, G_LR), make_optimizer(config, d, D_LR)
    set_group(g, 8)
    reals = stream(case, 32, 0, 1)
    for step in range(ROUNDS * D_STEPS):
        x, y = on_device(next(reals), torch.device("cpu"))
        z, y_fake = (
            latents(SEED, Numbers.D_STEP, step * 32, 32, MODEL.latent_dim),
            random_labels(SEED, Numbers.D_STEP, step * 32, 32, 4),
        )
        power_iteration(d)
        opt_d.zero_grad()
        hinge_d(d(x, y), d(g(z, y_fake).detach(), y_fake)).backward()
        opt_d.step()
        if step % D_STEPS == D_STEPS - 1:
            start = step // D_STEPS * 32
            z, y = latents(SEED, Numbers.G_STEP, start, 32, MODEL.latent_dim), random_labels(SEED, Numbers.G_STEP, start, 32, 4)
            power_iteration(g)
            opt_g.zero_grad()
            hinge_g(d(g(z, y), y)).backward()
            opt_g.step()
    reals.close()
    return {f"{name}.{key}": p.detach() for name, net in (("G", g), ("D", d)) for key, p in net.named_parameters()}


def worker(case: Case, out: Path) -> None:
    """One rank of a case: what the training loop does, with a record of what it saw."""
    from pipeline.engines import Engine, ZeroConfig, share_batch_norm, start_workers
    from pipeline.objective import Objective, ObjectiveConfig
    from pipeline.steps import d_step, fakes, g_step

    ranks = start_workers()
    plan = plan_batch(BatchConfig(32, 8, case.micro_batch), ranks.world_size)
    config = OptimConfig(optimizer=case.optimizer)  # type: ignore[arg-type]
    zero = ZeroConfig(stage=case.stage)  # type: ignore[arg-type]
    pairs = zip(networks(), (G_LR, D_LR), strict=True)
    g, d = (Engine(net, make_optimizer(config, net, lr), zero, case.micro_batch, bf16=False) for net, lr in pairs)
    share_batch_norm(g.module, plan, ranks.rank)
    objective = Objective(ObjectiveConfig(), plan, ranks, SEED)
    seen: dict[int, str] = {}
    reals = stream(case, case.micro_batch, ranks.rank, ranks.world_size)

    def real_batches():  # type: ignore[no-untyped-def]
        for batch in reals:
            seen.update(fingerprint(batch))
            yield on_device(batch, ranks.device)

    def drawn(numbers: Numbers, position: int):  # type: ignore[no-untyped-def]
        draw = fakes(MODEL, plan, ranks, SEED, numbers, position)

        def recorded(micro_step: int) -> tuple[Tensor, Tensor]:
            z, y = draw(micro_step)
            for i in range(len(z)):
                place = position + plan.start(micro_step, ranks.rank) + i
                content = hashlib.sha256(z[i].numpy().tobytes() + bytes([int(y[i])])).hexdigest()
                seen[(1 + numbers) * 1_000_000 + place] = content
            return z, y

        return recorded

    for i in range(ROUNDS):
        for step in range(D_STEPS):
            position = (i * D_STEPS + step) * 32
            d_step(g, d, real_batches(), drawn(Numbers.D_STEP, position), objective, position)
        g_step(g, d, drawn(Numbers.G_STEP, i * 32), objective, i * 32)
    reals.close()
    out.with_suffix(f".{ranks.rank}.json").write_text(json.dumps(seen))
    if ranks.main:
        named = {f"{n}.{k}": p.detach().clone() for n, e in (("G", g), ("D", d)) for k, p in e.module.named_parameters()}
        safetensors.torch.save_file(named, out)
    torch.distributed.destroy_process_group()


def run_case(case: Case, folder: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Start the workers of a case; returns its parameters and everything its global batches held, by place."""
    out = folder / f"{case.name}.safetensors"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = {"WORLD_SIZE": case.processes, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": 1}
    common |= {"ACCELERATE_USE_DEEPSPEED": "true", "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-m", "benchmarks.equality", "--worker", json.dumps(asdict(case)), "--out", str(out)]
    workers = [
        subprocess.Popen(
            command, env=os.environ | {k: str(v) for k, v in common.items()} | {"RANK": str(r), "LOCAL_RANK": str(r)}
        )
        for r in range(case.processes)
    ]
    codes = [process.wait(300) for process in workers]
    if any(codes):
        raise SystemExit(f"benchmarks.equality: the workers of {case.name} ended with {codes}")
    seen: dict[str, str] = {}
    for rank in range(case.processes):
        seen |= json.loads(out.with_suffix(f".{rank}.json").read_text())
    return safetensors.torch.load_file(out), seen


def distance(a: dict[str, Tensor], b: dict[str, Tensor], network: str) -> float:
    """|a - b| / |b| over all parameters of one network."""
    keys = [key for key in b if key.startswith(network)]
    difference = sum((a[key].double() - b[key].double()).square().sum() for key in keys)
    return float((difference / sum(b[key].double().square().sum() for key in keys)) ** 0.5)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.equality", description=__doc__)
    parser.add_argument("--stages", default="1,2", help="ZeRO stages to compare with plain autograd")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        worker(Case(**json.loads(args.worker)), args.out)
        return 0
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base = Case("", pack_patterns(folder, classes=4, images=64))
        start = {f"{n}.{k}": p.detach() for n, net in zip("GD", networks(), strict=True) for k, p in net.named_parameters()}
        reference = plain(base)

        def row(case: str, against: str, a: dict[str, Tensor], b: dict[str, Tensor], limit: float | None) -> None:
            g, d = distance(a, b, "G"), distance(a, b, "D")
            moved = min(distance(start, b, "G"), distance(start, b, "D"))
            ok = limit is None or (max(g, d) <= limit and moved > 30 * limit)
            rows.append({"case": case, "against": against, "G": g, "D": d, "moved": moved, "limit": limit, "ok": ok})

        for stage in (int(s) for s in args.stages.split(",")):
            parameters, _ = run_case(replace(base, name=f"zero{stage}", stage=stage), folder)
            row(f"ZeRO-{stage}, 2 ranks, sgd", "autograd", parameters, reference, PLAIN_LIMIT)
        for optimizer in ("sgd", "adam"):
            both = replace(base, optimizer=optimizer)
            one, seen_one = run_case(replace(both, name=f"one-{optimizer}", processes=1, micro_batch=8), folder)
            two, seen_two = run_case(replace(both, name=f"two-{optimizer}"), folder)
            row(f"1 rank, {optimizer}", "2 ranks", one, two, RANKS_LIMIT if optimizer == "sgd" else None)
        same = seen_one == seen_two and len(seen_one) == ROUNDS * (2 * D_STEPS + 1) * 32
        rows.append({"case": "samples, labels, flips, latents", "against": "2 ranks", "ok": same, "compared": len(seen_one)})
    ok = all(bool(r["ok"]) for r in rows)
    report("equality", rows, {"rows": rows}, ok)
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
