"""`python -m benchmarks.equality --stages 0,1,2,3`: the two ZeRO engines against plain autograd, however the work is shared.

A tiny BigGAN trains some rounds (two D steps and a G step each): by plain autograd over whole global batches in one process,
and through engines for each stage, precision, accumulation and number of ranks. Spectral norm, batch norm over groups that are
parts of a micro-batch or span ranks, attention, orthogonal regularisation, EMA and the data stream take part. Compared are
parameters, averages and the vectors of spectral norm (norm of the difference over norm), and which samples, labels, flips and
latents each global batch held.

fp32 has to be within 1e-5 of autograd in fp32; bf16 no farther from that than 1.5 times autograd in bf16 is. With Adam the
distances are only reported: it amplifies rounding where gradients are near 0.
"""

import argparse
import hashlib
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from benchmarks.support.patterns import pack_patterns
from benchmarks.support.report import report
from model import regularizers
from model.batchnorm import set_group
from model.biggan import Discriminator, Generator
from model.config import ModelConfig
from model.ema import EMA
from model.latents import RandomStream, latents, random_labels
from model.losses import hinge_d, hinge_g
from model.spectral import power_iteration
from pipeline.data.loader import DataConfig, DataLoader, MicroBatch
from pipeline.data.manifest import load_manifest
from pipeline.engine import zero as engines
from pipeline.engine.batch import BatchConfig, plan_batch
from pipeline.engine.objective import Objective, ObjectiveConfig, Pair, ortho_weights
from pipeline.engine.optim import OptimConfig, make_optimizer
from pipeline.engine.steps import d_step, fakes, g_step
from pipeline.engine.zero import Engine, Ranks, ZeroConfig, share_batch_norm, start_workers
from pipeline.training.loop import on_device

D_STEPS, BATCH, GROUP, SEED = 2, 16, 4, 3
ORTHO, DECAY = 1.0, 0.5
# Rounding moves a few activations across the kink of a ReLU, which changes a gradient by about 1e-3 of itself: the same
# plain run on 1 and on 2 threads differs by that. Steps are small enough to keep this below the limit, and `moved`
# (how far training has carried the parameters) shows that a wrong gradient would stand out.
G_LR, D_LR = 2e-4, 1e-4
MODEL = ModelConfig(32, 4, channels=3, ch=4, shared_dim=8, z_dim=32, g_attention=(16,), d_attention=(16,))
FP32_LIMIT, BF16_LIMIT = 1e-5, 1.5
NETWORKS = ("G", "D", "EMA", "u, v")


@dataclass(frozen=True)
class Case:
    """One way to train the same thing."""

    stage: int
    precision: str = "fp32"
    accumulation: int = 1
    optimizer: str = "sgd"
    clipping: float = 0.0
    offload: str = "none"
    recompute: bool = False

    @property
    def mathematics(self) -> "Case":
        """What plain autograd computes for it."""
        return Case(-1, self.precision, 1, self.optimizer, self.clipping)


@dataclass(frozen=True)
class Ask:
    """What the command line says."""

    stages: tuple[int, ...]
    optimizers: tuple[str, ...]
    rounds: int


def cases(ask: Ask) -> list[Case]:
    return [case for stage in ask.stages for case in _of_stage(stage) if case.optimizer in ask.optimizers]


def _of_stage(stage: int) -> Iterator[Case]:
    yield from (Case(stage, precision, steps) for precision, steps in product(("fp32", "bf16"), (1, 4)))
    plain = Case(stage, accumulation=4)
    # The norms of the gradients are 65 to 350: some steps are clipped, others are not.
    yield from (replace(plain, clipping=100.0), replace(plain, recompute=True), replace(plain, optimizer="adam"))
    if stage > 0:
        yield from (replace(plain, offload="optimizer", optimizer=name) for name in ("sgd", "adam"))


def networks() -> tuple[Generator, Discriminator]:
    """Away from the orthogonal start, where attention is off and power iteration and regularisation stand still."""
    torch.manual_seed(SEED)
    pair = Generator(MODEL), Discriminator(MODEL)
    with torch.no_grad():
        for network in pair:
            for parameter in network.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return pair


def collect(g: Generator, d: Discriminator, averages: dict[str, Tensor]) -> dict[str, Tensor]:
    """What is compared, under names that begin with one of NETWORKS."""
    found = {f"{name}.{key}": p for name, network in (("G", g), ("D", d)) for key, p in network.named_parameters()}
    vectors = {f"u, v.{i}.{key}": b for i, network in enumerate((g, d)) for key, b in network.named_buffers()}
    found |= {f"EMA.{key}": average for key, average in averages.items()}
    found |= {key: vector for key, vector in vectors.items() if key.endswith((".u", ".v"))}
    return {key: tensor.detach().clone() for key, tensor in found.items()}


def stream(uri: str, micro_batch: int, rank: int, world_size: int) -> DataLoader:
    data, shape = DataConfig(uri, flip=True), {"global_batch": BATCH, "micro_batch": micro_batch}
    return DataLoader(data, load_manifest(uri), seed=SEED, rank=rank, world_size=world_size, **shape)


def plain(case: Case, rounds: int, uri: str) -> dict[str, Tensor]:
    """The reference: whole batches, torch's own optimiser, no engine."""
    g, d = networks()
    config = OptimConfig(optimizer=case.optimizer)  # type: ignore[arg-type]
    opt_g, opt_d = make_optimizer(config, g, G_LR), make_optimizer(config, d, D_LR)
    ema = EMA(dict(g.named_parameters()))
    set_group(g, GROUP)
    reals = stream(uri, BATCH, 0, 1)

    def draw(numbers: RandomStream, start: int) -> Pair:
        return latents(SEED, numbers, start, BATCH, MODEL.latent_dim), random_labels(SEED, numbers, start, BATCH, 4)

    def update(network: Generator | Discriminator, optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
        optimizer.zero_grad()
        loss.backward()
        if case.clipping:
            torch.nn.utils.clip_grad_norm_(network.parameters(), case.clipping)
        optimizer.step()

    for step in range(rounds * D_STEPS):
        (x, y), (z, y_fake) = on_device(next(reals), torch.device("cpu")), draw(RandomStream.D_STEP, step * BATCH)
        power_iteration(d)
        with torch.autocast("cpu", torch.bfloat16, enabled=case.precision == "bf16"):
            logits = d(x, y), d(g(z, y_fake).detach(), y_fake)
        update(d, opt_d, hinge_d(*logits))
        if step % D_STEPS == D_STEPS - 1:
            z, y = draw(RandomStream.G_STEP, step // D_STEPS * BATCH)
            power_iteration(g)
            with torch.autocast("cpu", torch.bfloat16, enabled=case.precision == "bf16"):
                on_fake = d(g(z, y), y)
            update(g, opt_g, hinge_g(on_fake) + ORTHO * regularizers.orthogonal(ortho_weights(g)))
            ema.update(dict(g.named_parameters()), DECAY)
    reals.close()
    return collect(g, d, ema.averages)


def engine_case(case: Case, rounds: int, uri: str, ranks: Ranks, seen: dict[int, str]) -> dict[str, Tensor]:
    """One rank of a case: what the training loop does, with a record of what it saw."""
    micro_batch = BATCH // ranks.world_size // case.accumulation
    plan = plan_batch(BatchConfig(BATCH, GROUP, micro_batch), ranks.world_size)
    config = OptimConfig(optimizer=case.optimizer)  # type: ignore[arg-type]
    zero = ZeroConfig(case.stage, case.offload, case.clipping)  # type: ignore[arg-type]
    made = []
    for network, lr in zip(networks(), (G_LR, D_LR), strict=True):
        network.recompute = case.recompute
        made.append(Engine(network, make_optimizer(config, network, lr), zero, micro_batch, case.precision == "bf16"))
        share_batch_norm(network, plan, ranks.rank)
    g, d = made
    ema = EMA(g.parts())
    objective = Objective(ObjectiveConfig(ortho=ORTHO), plan, ranks, SEED)
    reals = stream(uri, micro_batch, ranks.rank, ranks.world_size)

    def real_batches() -> Iterator[Pair]:
        for batch in reals:
            seen.update(fingerprint(batch))
            yield on_device(batch, ranks.device)

    def draw(numbers: RandomStream, position: int):  # type: ignore[no-untyped-def]
        drawn = fakes(MODEL, plan, ranks, SEED, numbers, position)

        def recorded(micro_step: int) -> Pair:
            z, y = drawn(micro_step)
            for i in range(len(z)):
                place = position + plan.start(micro_step, ranks.rank) + i
                content = hashlib.sha256(z[i].numpy().tobytes() + bytes([int(y[i])])).hexdigest()
                seen[(1 + numbers) * 1_000_000 + place] = content
            return z, y

        return recorded

    for i in range(rounds):
        for step in range(D_STEPS):
            position = (i * D_STEPS + step) * BATCH
            d_step(g, d, real_batches(), draw(RandomStream.D_STEP, position), objective, position)
        g_step(g, d, draw(RandomStream.G_STEP, i * BATCH), objective, i * BATCH)
        ema.update(g.parts(), DECAY)
    reals.close()
    averages = g.whole(ema.averages)
    with g.gathered(), d.gathered():
        return collect(g.module, d.module, averages)  # type: ignore[arg-type]


def fingerprint(batch: MicroBatch) -> dict[int, str]:
    """Position -> what stood there."""
    rows = zip(batch.positions.tolist(), batch.samples.tolist(), batch.labels.tolist(), batch.flips.tolist(), strict=True)
    return {position: f"{sample}/{label}/{flip}" for position, sample, label, flip in rows}


def worker(ask: Ask, uri: str, folder: Path) -> None:
    """One rank: every case, one after the other."""
    ranks = start_workers()
    # Several buckets and parameters of both kinds, as in a network of full size.
    engines.BUCKET, engines.PERSISTENT = 5_000, 100
    seen: dict[int, str] = {}
    for i, case in enumerate(cases(ask)):
        result = engine_case(case, ask.rounds, uri, ranks, seen)
        if ranks.main:
            safetensors.torch.save_file(result, folder / f"{i}.safetensors")
    (folder / f"seen-{ranks.rank}.json").write_text(json.dumps(seen))
    torch.distributed.destroy_process_group()


def run_workers(world_size: int, ask: Ask, uri: str, folder: Path) -> dict[str, str]:
    """Start the ranks; returns everything that their global batches held, by place."""
    folder.mkdir()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = {"WORLD_SIZE": world_size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": 1}
    common |= {"ACCELERATE_USE_DEEPSPEED": "true", "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-m", "benchmarks.equality", "--worker", json.dumps([asdict(ask), uri, str(folder)])]
    workers = [
        subprocess.Popen(
            command, env=os.environ | {k: str(v) for k, v in common.items()} | {"RANK": str(r), "LOCAL_RANK": str(r)}
        )
        for r in range(world_size)
    ]
    codes = [process.wait(1200) for process in workers]
    if any(codes):
        raise SystemExit(f"benchmarks.equality: {world_size} workers ended with {codes}")
    seen: dict[str, str] = {}
    for rank in range(world_size):
        seen |= json.loads((folder / f"seen-{rank}.json").read_text())
    return seen


def distance(a: dict[str, Tensor], b: dict[str, Tensor], network: str) -> float:
    """|a - b| / |b| over all tensors of one of NETWORKS."""
    keys = [key for key in b if key.startswith(f"{network}.")]
    difference = sum((a[key].double() - b[key].double()).square().sum() for key in keys)
    return float((difference / sum(b[key].double().square().sum() for key in keys)) ** 0.5)


def compare(case: Case, found: dict[str, Tensor], references: dict[Case, dict[str, Tensor]], start: dict[str, Tensor]) -> dict:
    """A row of the table: distances to autograd in fp32, what they may be, and to autograd in the same precision."""
    exact = references[replace(case.mathematics, precision="fp32")]
    same = references[case.mathematics]
    moved = {name: distance(start, exact, name) for name in NETWORKS}
    row = asdict(case) | {name: distance(found, exact, name) for name in NETWORKS}
    if case.precision == "bf16":
        limits = {name: BF16_LIMIT * distance(same, exact, name) for name in NETWORKS}
        row |= {f"{name} to bf16": distance(found, same, name) for name in ("G", "D")}
    else:
        limits = dict.fromkeys(NETWORKS, FP32_LIMIT)
    within = all(row[name] <= limits[name] and moved[name] > 10 * limits[name] for name in NETWORKS)
    row |= {"limit G": limits["G"], "limit D": limits["D"], "moved": min(moved.values())}
    return row | {"ok": case.optimizer == "adam" or within}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.equality", description=__doc__)
    parser.add_argument("--stages", default="0,1,2,3", help="ZeRO stages to compare with plain autograd")
    parser.add_argument("--optimizers", default="sgd,adam", help="with which (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="of two D steps and a G step (default: %(default)s)")
    parser.add_argument("--ranks", default="1,2,4", help="numbers of processes")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        ask, uri, folder = json.loads(args.worker)
        worker(Ask(**ask), uri, Path(folder))
        return 0
    torch.set_num_threads(1)  # as the workers have: with more, work this small only waits
    ask = Ask(tuple(map(int, args.stages.split(","))), tuple(args.optimizers.split(",")), args.rounds)
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as name:
        uri = pack_patterns(Path(name), classes=4, images=64)
        g, d = networks()
        start = collect(g, d, dict(g.named_parameters()))
        wanted = {case.mathematics for case in cases(ask)}
        wanted |= {replace(case, precision="fp32") for case in wanted}
        references = {case: plain(case, ask.rounds, uri) for case in wanted}
        seen = {}
        for world_size in (int(ranks) for ranks in args.ranks.split(",")):
            folder = Path(name, str(world_size))
            seen[world_size] = run_workers(world_size, ask, uri, folder)
            for i, case in enumerate(cases(ask)):
                found = safetensors.torch.load_file(folder / f"{i}.safetensors")
                rows.append({"ranks": world_size} | compare(case, found, references, start))
    held = list(seen.values())
    same = all(other == held[0] for other in held) and len(held[0]) == ask.rounds * (2 * D_STEPS + 1) * BATCH
    rows.append({"case": "samples, labels, flips, latents", "ok": same})
    ok = all(bool(row["ok"]) for row in rows)
    report("equality", rows, {"rows": rows, "places_compared": len(held[0])}, ok)
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
