"""Define what both sides of `benchmarks.equality` share: the cases, and the networks and data at the start."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product

import torch
from torch import Tensor

from model.biggan import Discriminator, Generator
from model.config import ModelConfig
from pipeline.data.loader import DataConfig, DataLoader
from pipeline.data.manifest import load_manifest

D_STEPS, BATCH, GROUP, SEED = 2, 16, 4, 3
ORTHO, DECAY = 1.0, 0.5
# Rounding moves a few activations across the kink of a ReLU, which changes a gradient by about 1e-3 of itself: the same
# plain run on 1 and on 2 threads differs by that. Steps are small enough to keep this below the limit, and `moved`
# (how far training has carried the parameters) shows that a wrong gradient would stand out.
G_LR, D_LR = 2e-4, 1e-4
MODEL = ModelConfig(32, 4, channels=3, ch=4, shared_dim=8, z_dim=32, g_attention=(16,), d_attention=(16,))
NETWORKS = ("G", "D", "EMA", "u, v")


@dataclass(frozen=True, kw_only=True)
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
        """Return the case that plain autograd computes as its reference."""
        return Case(stage=-1, precision=self.precision, optimizer=self.optimizer, clipping=self.clipping)


@dataclass(frozen=True)
class Ask:
    """The cases that the command line asks for."""

    stages: tuple[int, ...]
    optimizers: tuple[str, ...]
    rounds: int


def cases(ask: Ask) -> list[Case]:
    return [case for stage in ask.stages for case in _of_stage(stage) if case.optimizer in ask.optimizers]


def _of_stage(stage: int) -> Iterator[Case]:
    for precision, steps in product(("fp32", "bf16"), (1, 4)):
        yield Case(stage=stage, precision=precision, accumulation=steps)
    plain = Case(stage=stage, accumulation=4)
    # The norms of the gradients are 65 to 350: some steps are clipped, others are not.
    yield from (replace(plain, clipping=100.0), replace(plain, recompute=True), replace(plain, optimizer="adam"))
    if stage > 0:
        yield from (replace(plain, offload="optimizer", optimizer=name) for name in ("sgd", "adam"))


def networks() -> tuple[Generator, Discriminator]:
    """Return G and D away from the orthogonal start, where attention is off and power iteration has converged."""
    torch.manual_seed(SEED)
    pair = Generator(MODEL), Discriminator(MODEL)
    with torch.no_grad():
        for network in pair:
            for parameter in network.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return pair


def collect(g: Generator, d: Discriminator, averages: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return copies of the compared tensors, under names that begin with one of NETWORKS."""
    found = {f"{name}.{key}": p for name, network in (("G", g), ("D", d)) for key, p in network.named_parameters()}
    vectors = {f"u, v.{i}.{key}": b for i, network in enumerate((g, d)) for key, b in network.named_buffers()}
    found |= {f"EMA.{key}": average for key, average in averages.items()}
    found |= {key: vector for key, vector in vectors.items() if key.endswith((".u", ".v"))}
    return {key: tensor.detach().clone() for key, tensor in found.items()}


def stream(uri: str, micro_batch: int, rank: int, world_size: int) -> DataLoader:
    data, shape = DataConfig(uri=uri, flip=True), {"global_batch": BATCH, "micro_batch": micro_batch}
    return DataLoader(data, load_manifest(uri), seed=SEED, rank=rank, world_size=world_size, **shape)
