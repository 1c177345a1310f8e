"""Exponential moving average of a generator's parameters (BigGAN, section 3.1)."""

from collections.abc import Mapping

import torch
from torch import Tensor


class EMA:
    """fp32 averages of parameters, or of a rank's parts of them, by name. Buffers are not averaged: see `model.batchnorm`."""

    def __init__(self, parameters: Mapping[str, Tensor]):
        self.averages = {name: p.detach().float().clone() for name, p in parameters.items()}

    @torch.no_grad()
    def update(self, parameters: Mapping[str, Tensor], decay: float) -> None:
        """average <- decay * average + (1 - decay) * parameter."""
        current = [parameters[name].detach().float() for name in self.averages]
        torch._foreach_lerp_(list(self.averages.values()), current, 1 - decay)

    @torch.no_grad()
    def load(self, averages: dict[str, Tensor]) -> None:
        """Take over saved averages. Raises KeyError if a parameter is missing."""
        for name, average in self.averages.items():
            average.copy_(averages[name])


def decay_per_step(half_life: float, images_per_step: int) -> float:
    """The decay for which an old value has lost half its weight after `half_life` images. 0 half-life: no averaging."""
    return 0.5 ** (images_per_step / half_life) if half_life > 0 else 0.0
