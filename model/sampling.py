"""Images from a trained generator."""

import torch
from torch import Tensor

from .latents import Stream, latents
from .networks import Generator


@torch.no_grad()
def generate(generator: Generator, labels: Tensor, *, seed: int, truncation: float | None = None, batch: int = 256) -> Tensor:
    """Images uint8 [n, C, r, r] of `labels` [n] int64; sample i depends on seed, i and its label only, not on `batch`."""
    device = next(generator.parameters()).device
    config = generator.config
    images = torch.empty(len(labels), config.channels, config.resolution, config.resolution, dtype=torch.uint8)
    for start in range(0, len(labels), batch):
        y = labels[start : start + batch]
        z = latents(seed, Stream.SAMPLES, start, len(y), config.latent_dim, truncation)
        images[start : start + batch] = to_pixels(generator(z.to(device), y.to(device)))
    return images


def to_pixels(x: Tensor) -> Tensor:
    """-1..1 -> uint8 0..255."""
    return ((x + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def grid(images: Tensor, columns: int) -> Tensor:
    """Tile uint8 [n, C, r, r] row by row into [H, W, C]; n must be a multiple of `columns`."""
    n, c, r, _ = images.shape
    tiled = images.reshape(n // columns, columns, c, r, r).permute(0, 3, 1, 4, 2)
    return tiled.reshape(n // columns * r, columns * r, c)
