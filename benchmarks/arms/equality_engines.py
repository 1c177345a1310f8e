"""Train one rank of `benchmarks.equality`: `python -m benchmarks.arms.equality_engines '[ASK, URI, FOLDER]'`.

It trains every case with the two engines, one case after the other. Rank 0 writes the tensors of case i to
FOLDER/i.safetensors. Each rank writes to FOLDER/seen-RANK.json what its part of the global batches held.
"""

import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from benchmarks.arms.equality_cases import (
    BATCH,
    D_LR,
    D_STEPS,
    DECAY,
    G_LR,
    GROUP,
    MODEL,
    ORTHO,
    SEED,
    Ask,
    Case,
    cases,
    collect,
    networks,
    stream,
)
from model.ema import EMA
from model.latents import RandomStream
from pipeline.data.loader import MicroBatch
from pipeline.engine import zero as engines
from pipeline.engine.batch import BatchConfig, plan_batch
from pipeline.engine.objective import Objective, ObjectiveConfig, Pair
from pipeline.engine.optim import OptimConfig, make_optimizer
from pipeline.engine.ranks import Ranks, start_workers
from pipeline.engine.steps import d_step, fakes, g_step
from pipeline.engine.zero import Engine, ZeroConfig, share_batch_norm
from pipeline.training.reals import on_device


def engine_case(case: Case, rounds: int, uri: str, ranks: Ranks, seen: dict[int, str]) -> dict[str, Tensor]:
    """Train `case` as the training loop does, on one rank, and record in `seen` what the batches held."""
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
        drawn = fakes(MODEL, plan, ranks, seed=SEED, stream=numbers, position=position)

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
            d_step(g, d, real_batches(), draw(RandomStream.D_STEP, position), objective, position=position)
        g_step(g, d, draw(RandomStream.G_STEP, i * BATCH), objective, position=i * BATCH)
        ema.update(g.parts(), DECAY)
    reals.close()
    averages = g.whole(ema.averages)
    with g.gathered(), d.gathered():
        return collect(g.module, d.module, averages)  # type: ignore[arg-type]


def fingerprint(batch: MicroBatch) -> dict[int, str]:
    """Return, for each position, the sample, label and flip there."""
    rows = zip(batch.positions.tolist(), batch.samples.tolist(), batch.labels.tolist(), batch.flips.tolist(), strict=True)
    return {position: f"{sample}/{label}/{flip}" for position, sample, label, flip in rows}


def worker(ask: Ask, uri: str, folder: Path) -> None:
    """Train every case on this rank, one after the other, and write the results to `folder`."""
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


if __name__ == "__main__":
    ask, uri, folder = json.loads(sys.argv[1])
    worker(Ask(**ask), uri, Path(folder))
