"""One optimiser step of D and one of G, each over a global batch that is accumulated from micro-batches."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from model.biggan import ModelConfig
from model.latents import Stream, latents, random_labels
from model.losses import hinge_d, hinge_g
from model.spectral import power_iteration
from pipeline.batch import BatchPlan
from pipeline.engines import Engine, Ranks

Pair = tuple[Tensor, Tensor]
Fakes = Callable[[int], Pair]
"""Micro-step -> (z [m, z_dim], y [m]) on the device."""


def fakes(config: ModelConfig, plan: BatchPlan, ranks: Ranks, seed: int, stream: Stream, position: int) -> Fakes:
    """Latents and classes of this rank's part of the global batch that starts at sample `position` of `stream`."""

    def draw(micro_step: int) -> Pair:
        start = position + plan.start(micro_step, ranks.rank)
        z = latents(seed, stream, start, plan.micro_batch, config.z_dim)
        y = random_labels(seed, stream, start, plan.micro_batch, config.num_classes)
        return z.to(ranks.device, non_blocking=True), y.to(ranks.device, non_blocking=True)

    return draw


def d_step(g: Engine, d: Engine, reals: Iterable[Pair], draw: Fakes, plan: BatchPlan) -> dict[str, Tensor]:
    """Update D on one global batch of real images (x [m, C, r, r] in -1..1, y [m]) and as many fakes."""
    power_iteration(d.module)
    sums: dict[str, Tensor] = {}
    for micro_step, (x, y) in zip(range(plan.accumulation), reals, strict=False):
        z, y_fake = draw(micro_step)
        with torch.no_grad():
            fake = g.apply(z, y_fake)
        # One forward for both: an engine allows a single backward per forward, and kernels like the larger batch.
        on_real, on_fake = d(torch.cat((x, fake)), torch.cat((y, y_fake))).chunk(2)
        loss = hinge_d(on_real, on_fake) / plan.accumulation
        d.backward(loss)
        _add(
            sums,
            {
                "loss/d": loss,
                "d/real": on_real.mean() / plan.accumulation,
                "d/fake": on_fake.mean() / plan.accumulation,
            },
        )
    return sums | {"grad_norm/d": d.step()}


def g_step(g: Engine, d: Engine, draw: Fakes, plan: BatchPlan) -> dict[str, Tensor]:
    """Update G on one global batch of fakes, through a frozen D."""
    power_iteration(g.module)
    sums: dict[str, Tensor] = {}
    with d.frozen():
        for micro_step in range(plan.accumulation):
            z, y = draw(micro_step)
            loss = hinge_g(d.apply(g(z, y), y)) / plan.accumulation
            g.backward(loss)
            _add(sums, {"loss/g": loss})
    return sums | {"grad_norm/g": g.step()}


def _add(sums: dict[str, Tensor], values: dict[str, Tensor]) -> None:
    for key, value in values.items():
        sums[key] = sums[key] + value.detach() if key in sums else value.detach()
