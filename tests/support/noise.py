"""Uniform noise by seed: the random numbers of augmentations, and images."""

import torch
from torch import Tensor


def draw(seed: int, *shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def images(seed: int, *shape: int) -> Tensor:
    return draw(seed, *shape).float() * 2 - 1
