"""Pixels as networks see them: uint8 0..255 becomes -1..1, and images are mirrored. `model.sampling.to_pixels` goes back."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

HALF_RANGE = 127.5
"""Steps of a pixel from -1 to 0, and from 0 to 1."""


def to_floats(images: Tensor, mirrored: Tensor | None = None) -> Tensor:
    """Return uint8 [n, C, H, W] as float32 -1..1, on the same device; those `mirrored`, bool [n], left to right."""
    x = images.to(torch.float32, copy=True).div_(HALF_RANGE).sub_(1)
    return x if mirrored is None else torch.where(mirrored[:, None, None, None], x.flip(3), x)


def mirror(pixels: NDArray[np.uint8], out: NDArray[np.uint8]) -> None:
    """Write one picture, uint8 [H, W, C], left to right into `out`, which may be the same memory."""
    torch.from_numpy(out).copy_(torch.from_numpy(pixels).flip(1))  # NumPy takes eight times as long
