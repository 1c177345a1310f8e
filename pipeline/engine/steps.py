"""One optimiser step of D and one of G, each over a global batch that is accumulated from micro-batches."""

from collections.abc import Callable, Iterable
from contextlib import nullcontext

import torch
from torch import Tensor

from model.config import ModelConfig
from model.latents import RandomStream, latents, random_labels
from model.spectral import power_iteration
from pipeline.engine.batch import BatchPlan
from pipeline.engine.objective import Objective, Pair
from pipeline.engine.ranks import Ranks
from pipeline.engine.zero import Engine, Update

Fakes = Callable[[int], Pair]
"""Micro-step -> (z [m, latent_dim], y [m]) on the device."""


def fakes(config: ModelConfig, plan: BatchPlan, ranks: Ranks, *, seed: int, stream: RandomStream, position: int) -> Fakes:
    """Latents and classes of this rank's part of the global batch that starts at sample `position` of `stream`."""

    def draw(micro_step: int) -> Pair:
        start = position + plan.start(micro_step, ranks.rank)
        z = latents(seed, stream, start, plan.micro_batch, config.latent_dim)
        y = random_labels(seed, stream, start, plan.micro_batch, config.num_classes)
        return ranks.put(z), ranks.put(y)

    return draw


def d_step(
    g: Engine, d: Engine, reals: Iterable[Pair], draw: Fakes, objective: Objective, *, position: int
) -> dict[str, Tensor]:
    """Update D on the global batch of real images (x [m, C, r, r] in -1..1, y [m]) at `position`, and as many fakes.

    Returns what to report; `skipped/d` is 1 if a gradient was not finite, and then nothing has changed.
    """
    accumulation = objective.plan.accumulation
    sums: dict[str, Tensor] = {}
    for micro_step, real in zip(range(accumulation), reals, strict=False):
        _iterate(d, g, objective, micro_step)
        z, y = draw(micro_step)
        with torch.no_grad():
            fake = g.apply(z, y)
        loss, values = objective.d_loss(d, real, (fake, y), position, micro_step)
        d.backward(loss / accumulation)
        _add(sums, values, accumulation)
    update = d.step()
    return sums | _reported("d", update) | objective.after_d_step(update.skipped)


def g_step(g: Engine, d: Engine, draw: Fakes, objective: Objective, *, position: int) -> dict[str, Tensor]:
    """Update G on one global batch of fakes, through a frozen D. Returns what `d_step` does, with `skipped/g`."""
    with g.gathered() if objective.config.ortho else nullcontext():
        slopes, sums = objective.g_penalty(g.module)
    accumulation = objective.plan.accumulation
    with d.frozen():
        for micro_step in range(accumulation):
            _iterate(g, d, objective, micro_step)
            z, y = draw(micro_step)
            loss, values = objective.g_loss(d.apply, (g(z, y), y), position, micro_step)
            g.backward(loss / accumulation, slopes if micro_step == 0 else {})
            _add(sums, values, accumulation)
    return sums | _reported("g", g.step())


def _iterate(learning: Engine, other: Engine, objective: Objective, micro_step: int) -> None:
    """Power iteration before a micro-step's forwards, as `objective.power_iteration` has it."""
    every_forward = objective.config.power_iteration == "forward"
    for engine in (learning, other) if every_forward else (learning,) if micro_step == 0 else ():
        with engine.gathered():
            power_iteration(engine.module)


def _reported(network: str, update: Update) -> dict[str, Tensor]:
    return {f"grad_norm/{network}": update.norm, f"skipped/{network}": torch.tensor(float(update.skipped))}


def _add(sums: dict[str, Tensor], values: dict[str, Tensor], accumulation: int) -> None:
    for key, value in values.items():
        sums[key] = sums.get(key, torch.zeros_like(value)) + value.detach() / accumulation
