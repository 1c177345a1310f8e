"""When spectral norm's vectors move in a step; what the steps compute is compared with autograd in test_zero.py."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from model.batchnorm import set_group
from model.config import ModelConfig
from model.latents import RandomStream
from model.networks import build_discriminator, build_generator
from model.spectral import power_iteration
from pipeline.engine.batch import BatchConfig, plan_batch
from pipeline.engine.objective import Objective, ObjectiveConfig
from pipeline.engine.ranks import Ranks
from pipeline.engine.steps import d_step, fakes, g_step
from tests.support.plain_engine import Plain

MODEL = ModelConfig(32, 3, channels=3, ch=4, shared_dim=4, z_dim=16)


def vectors(network: torch.nn.Module) -> list[Tensor]:
    return [buffer for name, buffer in network.named_buffers() if name.rpartition(".")[2] in ("u", "v")]


@pytest.mark.parametrize(
    ("when", "learning", "other"), [("step", 1, 0), ("forward", 2, 2)], ids=["once a step", "before each forward"]
)
def test_when_the_vectors_move(when: Any, learning: int, other: int) -> None:
    """Rounds of power iteration in a step of two micro-batches; these engines leave the weights as they are."""
    torch.manual_seed(0)
    g, d = Plain(build_generator(MODEL)), Plain(build_discriminator(MODEL))
    for network in (g.module, d.module):
        set_group(network, 2)
        for buffer in vectors(network):  # far from what they converge to, where another round would change nothing
            buffer.copy_(torch.nn.functional.normalize(torch.randn_like(buffer), dim=0))
    plan, ranks = plan_batch(BatchConfig(4, 2, 2), 1), Ranks(rank=0, world_size=1, device=torch.device("cpu"))
    objective = Objective(ObjectiveConfig(power_iteration=when), plan, ranks, 0)
    real = torch.zeros(2, 3, 32, 32), torch.zeros(2, dtype=torch.int64)
    draw = fakes(MODEL, plan, ranks, seed=0, stream=RandomStream.D_STEP, position=0)
    wanted = copy.deepcopy((g.module, d.module))
    for step, rounds in (("d", (other, learning)), ("g", (learning, other))):
        if step == "d":
            d_step(g, d, [real] * 2, draw, objective, position=0)  # type: ignore[arg-type]
        else:
            g_step(g, d, draw, objective, position=0)  # type: ignore[arg-type]
        for network, times, found in zip(wanted, rounds, (g.module, d.module), strict=True):
            power_iteration(network, times)
            assert all(torch.equal(a, b) for a, b in zip(vectors(network), vectors(found), strict=True)), (step, times)
