"""What the networks learn from: the adversarial loss, and the penalties and augmentations that a configuration adds.

`d_loss` and `g_loss` serve one micro-batch. What they remember over the run (LeCam's anchors, ADA's probability) is
`ObjectiveState`: agreed by all ranks after every D step, and part of a checkpoint.
"""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Annotated, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from model import regularizers
from model.augment import AUGMENTATIONS, CONSISTENCY_UNIFORMS, Policy, consistency_transform, next_p
from model.ema import decay_per_step
from model.latents import RandomStream, uniforms
from model.losses import LOSSES
from pipeline.bounds import Bounds, check_bounds
from pipeline.engine.batch import BatchPlan
from pipeline.engine.ranks import Ranks

Pair = tuple[Tensor, Tensor]
Values = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """The loss, and what stabilises it; all of it but the loss is off unless it is given."""

    loss: Literal[*LOSSES] = "hinge"  # type: ignore[valid-type]
    """Adversarial loss of D and G. Wasserstein relies on spectral normalisation for D's Lipschitz bound."""
    power_iteration: Literal["step", "forward"] = "step"
    """When spectral norm's vectors move: in a network's own optimiser steps, once, or before every forward in training, as in
    BigGAN-PyTorch and StudioGAN, which makes training depend on the micro-batch."""
    ortho: Annotated[float, Bounds(ge=0)] = 0.0
    """Weight of orthogonal regularisation of G (BigGAN, equation 3; the paper's value is 1e-4)."""
    r1: Annotated[float, Bounds(ge=0)] = 0.0
    """gamma of the R1 penalty gamma / 2 E||dD/dx||^2 on real images."""
    r1_every: Annotated[int, Bounds(ge=1)] = 16
    """D steps from one R1 penalty to the next, which then counts as many times (lazy regularisation, arXiv 1912.04958)."""
    lecam: Annotated[float, Bounds(ge=0)] = 0.0
    """Weight of LeCam regularisation (arXiv 2104.03310)."""
    lecam_half_life: Annotated[float, Bounds(ge=1)] = 140_000.0
    """Images after which an old logit's weight in LeCam's anchors has halved (0.99 a step at 2,048 is 140,000)."""
    cr: Annotated[float, Bounds(ge=0)] = 0.0
    """Weight of consistency regularisation on real images (CR-GAN, arXiv 1910.12027: 10)."""
    cr_fake: Annotated[float, Bounds(ge=0)] = 0.0
    """The same on fakes (balanced, arXiv 2002.04724: 10)."""
    augment: Literal["none", *AUGMENTATIONS] = "none"  # type: ignore[valid-type]
    """What D sees instead of the images, real and fake alike: DiffAugment, or ADA with a probability that adapts."""
    policy: tuple[Policy, ...] = ("color", "translation", "cutout")
    """DiffAugment's transforms."""
    ada_target: Annotated[float, Bounds(gt=-1, lt=1, because=", as the mean of a sign is")] = 0.6
    """E[sign D(real)] at which ADA's probability stands still (arXiv 2006.06676)."""
    ada_ramp: Annotated[int, Bounds(ge=1)] = 500_000
    """Images over which ADA's probability can go from 0 to 1."""

    def __post_init__(self) -> None:
        check_bounds(self)
        if self.augment == "diffaugment" and not self.policy:
            raise ValueError(f"policy=[]: name {', '.join(get_args(Policy))}, or set objective.augment=none")


@dataclass(frozen=True)
class ObjectiveState:
    """What the objective remembers."""

    d_steps: int = 0
    ema_real: float = 0.0
    ema_fake: float = 0.0
    ada_p: float = 0.0


_AUGMENT_UNIFORMS = max(augmentation.uniforms for augmentation in AUGMENTATIONS.values())
_UNIFORMS = 2 * _AUGMENT_UNIFORMS + 2 * CONSISTENCY_UNIFORMS
"""Of one place in a global batch: to augment the real image and the fake, then to transform each for consistency."""


class Objective:
    """The losses of one run. `position` is the sample number at which a step's global batch begins."""

    def __init__(self, config: ObjectiveConfig, plan: BatchPlan, ranks: Ranks, seed: int, state: ObjectiveState | None = None):
        self.config, self.plan, self.ranks, self.seed = config, plan, ranks, seed
        self.loss = LOSSES[config.loss]
        self.augmentation = AUGMENTATIONS.get(config.augment)
        self.state = state or ObjectiveState()
        self._seen: list[Tensor] = []

    def d_loss(
        self, d: Callable[[Tensor, Tensor], Tensor], real: Pair, fake: Pair, position: int, micro_step: int
    ) -> tuple[Tensor, Values]:
        """The loss [] of D on a micro-batch of (x [m, C, r, r], y [m]) each, and what to report."""
        config = self.config
        u = self._uniforms(RandomStream.AUGMENT_D, position, micro_step)
        (x, y), (x_fake, y_fake) = real, fake
        x = self._augment(x, u[0])
        x_fake = self._augment(x_fake, u[1])
        penalise = config.r1 > 0 and self.state.d_steps % config.r1_every == 0
        if penalise:
            x = x.detach().requires_grad_()
        images, labels = [x, x_fake], [y, y_fake]
        for weight, image, label, uniform in ((config.cr, x, y, u[2]), (config.cr_fake, x_fake, y_fake, u[3])):
            if weight:
                images.append(consistency_transform(image.detach(), uniform))
                labels.append(label)
        # One forward for all: an engine allows a single backward per forward, and kernels like the larger batch.
        # The fused attention kernels cannot be differentiated twice.
        with sdpa_kernel(SDPBackend.MATH) if penalise else nullcontext():
            logits = list(d(torch.cat(images), torch.cat(labels)).split(len(x)))
        on_real, on_fake = logits[:2]
        loss = self.loss.d(on_real, on_fake)
        values = {"loss/d": loss, "d/real": on_real.mean(), "d/fake": on_fake.mean()}
        values |= {"d/sign_real": on_real.sign().mean(), "d/sign_fake": on_fake.sign().mean()}
        if penalise:
            penalty = regularizers.gradient_penalty(on_real, x)
            loss = loss + config.r1_every * config.r1 / 2 * penalty
            values["penalty/r1"] = penalty
        if config.lecam:
            penalty = regularizers.lecam(on_real, on_fake, self.state.ema_real, self.state.ema_fake)
            loss = loss + config.lecam * penalty
            values["penalty/lecam"] = penalty
        transformed = iter(logits[2:])
        for name, weight, plain in (("cr", config.cr, on_real), ("cr_fake", config.cr_fake, on_fake)):
            if weight:
                penalty = regularizers.consistency(plain, next(transformed))
                loss = loss + weight * penalty
                values[f"penalty/{name}"] = penalty
        self._seen.append(torch.stack([on_real.mean(), on_fake.mean(), on_real.sign().mean()]).detach())
        return loss, values

    def g_loss(
        self, d: Callable[[Tensor, Tensor], Tensor], fake: Pair, position: int, micro_step: int
    ) -> tuple[Tensor, Values]:
        """The loss [] of G on a micro-batch of fakes (x [m, C, r, r], y [m]), through a frozen D."""
        x, y = fake
        if self.augmentation:
            x = self._augment(x, self._uniforms(RandomStream.AUGMENT_G, position, micro_step)[1])
        loss = self.loss.g(d(x, y))
        return loss, {"loss/g": loss}

    def g_penalty(self, g: nn.Module) -> tuple[dict[nn.Parameter, Tensor], Values]:
        """Gradients that G's weights get once per optimiser step, whatever the samples; and what to report.

        They are no term of a loss: under ZeRO-3 the weights are not there when a loss is differentiated.
        """
        if not self.config.ortho:
            return {}, {}
        weights = ortho_weights(g)
        penalty = regularizers.orthogonal(weights)
        slopes = torch.autograd.grad(self.config.ortho * penalty, weights)
        return dict(zip(weights, slopes, strict=True)), {"penalty/ortho": penalty.detach()}

    def after_d_step(self, skipped: bool) -> Values:
        """Agree with the other ranks on what D said, and move the state, unless the step was skipped."""
        config, state = self.config, self.state
        seen, self._seen = torch.stack(self._seen).mean(0), []
        if skipped:
            return {}
        self.state = replace(state, d_steps=state.d_steps + 1)
        adapts = self.augmentation is not None and self.augmentation.adapts
        if not (config.lecam or adapts):
            return {}  # the others need no host synchronisation
        real, fake, sign = (total / self.ranks.world_size for total in self.ranks.sum(list(seen)))
        images = self.plan.global_batch
        decay = decay_per_step(config.lecam_half_life, images) if state.d_steps else 0.0
        self.state = replace(
            self.state,
            ema_real=decay * state.ema_real + (1 - decay) * real,
            ema_fake=decay * state.ema_fake + (1 - decay) * fake,
        )
        if not adapts:
            return {}
        self.state = replace(self.state, ada_p=next_p(state.ada_p, sign, images, config.ada_target, config.ada_ramp))
        return {"ada/p": torch.tensor(self.state.ada_p), "ada/sign": torch.tensor(sign)}

    def _uniforms(self, stream: RandomStream, position: int, micro_step: int) -> list[Tensor]:
        config = self.config
        if not (self.augmentation or config.cr or config.cr_fake):
            return [torch.empty(0)] * 4
        start = position + self.plan.start(micro_step, self.ranks.rank)
        u = self.ranks.put(uniforms(self.seed, stream, start, self.plan.micro_batch, _UNIFORMS))
        return list(u.split([_AUGMENT_UNIFORMS] * 2 + [CONSISTENCY_UNIFORMS] * 2, 1))

    def _augment(self, x: Tensor, u: Tensor) -> Tensor:
        if not (chosen := self.augmentation):
            return x
        return chosen.apply(x, u[:, : chosen.uniforms], self.config.policy, self.state.ada_p)


def ortho_weights(g: nn.Module) -> list[nn.Parameter]:
    """G's weights but the class embedding, which is not a map (as in BigGAN-PyTorch)."""
    return [p for name, p in g.named_parameters() if p.dim() > 1 and not name.startswith("shared.")]
