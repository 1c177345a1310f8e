"""Train the reference of `benchmarks.equality`: plain autograd over whole global batches, in one process, without an engine."""

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
    Case,
    collect,
    networks,
    stream,
)
from model import regularizers
from model.batchnorm import set_group
from model.biggan import Discriminator, Generator
from model.ema import EMA
from model.latents import RandomStream, latents, random_labels
from model.losses import hinge_d, hinge_g
from model.spectral import power_iteration
from pipeline.engine.objective import Pair, ortho_weights
from pipeline.engine.optim import OptimConfig, make_optimizer
from pipeline.training.reals import on_device


def plain(case: Case, rounds: int, uri: str) -> dict[str, Tensor]:
    """Train `case` on whole batches with torch's own optimiser, and return the compared tensors."""
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
