"""Images from a trained generator."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from .biggan import class_weights
from .latents import RandomStream, Truncation, interpolated, latents
from .networks import Generator


def generate(
    generator: Generator,
    labels: Tensor,
    *,
    seed: int,
    start: int = 0,
    truncation: float | None = None,
    method: Truncation = "truncated-normal",
    batch: int = 256,
) -> Tensor:
    """Images uint8 [n, C, r, r] of `labels` [n] int64 as samples start .. start + n.

    Sample i depends on the seed, i and its label only, not on `batch` or `start`.
    """
    z = latents(seed, RandomStream.SAMPLES, start, len(labels), generator.config.latent_dim, truncation, method)
    return draw(generator, z, labels, batch)


@torch.no_grad()
def draw(generator: Generator, z: Tensor, y: Tensor, batch: int = 256) -> Tensor:
    """Images uint8 [n, C, r, r] on the CPU of z [n, latent_dim] and y, labels [n] int64 or class weights [n, num_classes]."""
    device, config = next(generator.parameters()).device, generator.config
    images = torch.empty(len(z), config.channels, config.resolution, config.resolution, dtype=torch.uint8)
    with full_precision(device):
        for start in range(0, len(z), batch):
            part = slice(start, start + batch)
            images[part] = to_pixels(generator(z[part].to(device), y[part].to(device)))
    return images


def walks(
    generator: Generator,
    labels: Tensor,
    steps: int,
    *,
    seed: int,
    truncation: float | None = None,
    method: Truncation = "truncated-normal",
) -> tuple[Tensor, Tensor]:
    """From sample 2i to sample 2i + 1 of `labels` [2n] in `steps` points: z [n * steps, latent_dim], weights [n * steps, K].

    Latents move as `interpolated` says, class weights on a line; both ends are what `generate` draws.
    """
    z = latents(seed, RandomStream.SAMPLES, 0, len(labels), generator.config.latent_dim, truncation, method)
    weights = class_weights(labels, generator.config.num_classes)[:, None]
    t = torch.linspace(0, 1, steps)[None, :, None]
    return interpolated(z[::2], z[1::2], steps), ((1 - t) * weights[::2] + t * weights[1::2]).flatten(0, 1)


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """fp32 as a CPU computes it: no autocast, and none of the 10-bit mantissas that cuDNN's convolutions have by default."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def to_pixels(x: Tensor) -> Tensor:
    """-1..1 -> uint8 0..255."""
    return ((x + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def grid(images: Tensor, columns: int) -> Tensor:
    """Tile uint8 [n, C, r, r] row by row into [H, W, C]; n must be a multiple of `columns`."""
    n, c, r, _ = images.shape
    tiled = images.reshape(n // columns, columns, c, r, r).permute(0, 3, 1, 4, 2)
    return tiled.reshape(n // columns * r, columns * r, c)
