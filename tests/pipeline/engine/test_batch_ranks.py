"""A global batch and its norm group mean the same on any number of ranks and in any micro-batches."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from model.config import ModelConfig
from model.latents import RandomStream
from model.networks import build_discriminator, build_generator
from pipeline.engine.batch import BatchConfig, plan_batch
from pipeline.engine.objective import Objective, ObjectiveConfig
from pipeline.engine.optim import OptimConfig, make_optimizer
from pipeline.engine.ranks import Ranks
from pipeline.engine.steps import d_step, fakes, g_step
from pipeline.engine.zero import Engine, ZeroConfig, share_batch_norm
from tests.support.ranks import on_ranks

TOTAL, GROUP, ROUNDS = 16, 8, 2
# Small steps: at 1e-3, four rounds carry one rank's fp32 8e-4 away from its fp64, across the kinks of ReLUs.
LR = 1e-4
# Batch norm in both networks.
MODEL = ModelConfig(32, 4, channels=1, ch=8, shared_dim=8, z_dim=16, discriminator="strided")
# Groups that are parts of a micro-batch, exactly one, and one over 2 or 4 ranks; with and without accumulation.
LAYOUTS = {1: (16, 8), 2: (8, 4), 4: (4, 2)}


def reals(step: int) -> tuple[Tensor, Tensor]:
    """Global batch number `step`, whose samples differ in brightness, as those of a batch-norm group should."""
    numbers = torch.Generator().manual_seed(step)
    x = torch.rand(TOTAL, 1, 32, 32, generator=numbers) * torch.rand(TOTAL, 1, 1, 1, generator=numbers)
    return 2 * x - 1, torch.randint(4, (TOTAL,), generator=numbers)


def train(ranks: Ranks, batch: BatchConfig) -> dict[str, Tensor]:
    """Both networks' parameters after `ROUNDS` steps each."""
    torch.manual_seed(0)
    plan = plan_batch(batch, ranks.world_size)
    optim = OptimConfig(optimizer="sgd")
    g, d = (
        Engine(network, make_optimizer(optim, network, LR), ZeroConfig(), plan.micro_batch, bf16=False)
        for network in (build_generator(MODEL), build_discriminator(MODEL))
    )
    for engine in (g, d):
        share_batch_norm(engine.module, plan, ranks.rank)
    objective = Objective(ObjectiveConfig(), plan, ranks, 0)
    for step in range(ROUNDS):
        x, y = reals(step)
        starts = [plan.start(micro_step, ranks.rank) for micro_step in range(plan.accumulation)]
        mine = [(x[start : start + plan.micro_batch], y[start : start + plan.micro_batch]) for start in starts]
        position = step * TOTAL
        d_step(
            g,
            d,
            mine,
            fakes(MODEL, plan, ranks, seed=0, stream=RandomStream.D_STEP, position=position),
            objective,
            position=position,
        )
        g_step(
            g, d, fakes(MODEL, plan, ranks, seed=0, stream=RandomStream.G_STEP, position=position), objective, position=position
        )
    return {f"{n}.{key}": p.detach().clone() for n, e in (("G", g), ("D", d)) for key, p in e.module.named_parameters()}


def layouts(ranks: Ranks, folder: str) -> None:
    cases = {f"{ranks.world_size}x{m}": BatchConfig(TOTAL, GROUP, m) for m in LAYOUTS[ranks.world_size]}
    if ranks.world_size == 1:
        cases["other group"] = BatchConfig(TOTAL, TOTAL)
    for name, batch in cases.items():
        found = train(ranks, batch)
        if ranks.main:
            torch.save(found, f"{folder}/{name}.pt")


def distance(a: dict[str, Tensor], b: dict[str, Tensor], network: str) -> float:
    """|a - b| / |b| over the parameters of one network."""
    keys = [key for key in b if key.startswith(network)]
    return float(sum((a[k] - b[k]).square().sum() for k in keys) / sum(b[k].square().sum() for k in keys)) ** 0.5


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_ranks_and_micro_batches_never_change_what_is_learned(tmp_path: Path) -> None:
    for world_size in LAYOUTS:
        on_ranks(world_size, layouts, str(tmp_path))
    one, other_group = torch.load(tmp_path / "1x16.pt"), torch.load(tmp_path / "other group.pt")
    for network in "GD":
        for world_size, micro_batches in LAYOUTS.items():
            for micro_batch in micro_batches:
                found = torch.load(tmp_path / f"{world_size}x{micro_batch}.pt")
                assert distance(found, one, network) < 1e-5, (network, world_size, micro_batch)
        assert distance(other_group, one, network) > 1e-4  # or the groups would make no difference here
