"""Random numbers that belong to a place, not to a process: word i of stream s under a seed is always the same.

A counter-based generator (Philox 4x64) is keyed by (seed, stream) and positioned at the sample's number, so any rank, batch
size or restart draws the same latent for the same sample. Normals come from the inverse distribution function: one word
each, and truncation (BigGAN, section 3.1) needs no rejection, so a sample moves smoothly as the truncation changes.
"""

import enum
import math

import numpy as np
import torch
from torch import Tensor

_WORDS = 4  # uint64 words per step of the counter


class Stream(enum.IntEnum):
    """What a sequence of numbers is for. Numbers are part of saved runs: append, never reorder."""

    D_STEP = 0
    G_STEP = 1
    SAMPLES = 2
    STANDING = 3
    SHEET = 4
    AUGMENT_D = 5
    AUGMENT_G = 6


def _uniform(seed: int, stream: int, start: int, n: int, width: int) -> Tensor:
    """[n, width] float64 in (0, 1), for samples start .. start + n."""
    steps = -(-width // _WORDS)
    bits = np.random.Philox(key=np.array([seed, stream], np.uint64), counter=start * steps)
    words = bits.random_raw(n * steps * _WORDS).reshape(n, steps * _WORDS)[:, :width]
    return torch.from_numpy(((words >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53)


def uniforms(seed: int, stream: Stream, start: int, n: int, width: int) -> Tensor:
    """[n, width] float64, uniform in (0, 1), for samples start .. start + n."""
    return _uniform(seed, 2 * stream, start, n, width)


def latents(seed: int, stream: Stream, start: int, n: int, z_dim: int, truncation: float | None = None) -> Tensor:
    """Standard normals [n, z_dim] float32 of samples start .. start + n; with `truncation` t > 0, conditioned on |z| <= t."""
    u = _uniform(seed, 2 * stream, start, n, z_dim)
    if truncation is not None:
        if not truncation > 0:
            raise ValueError(f"truncation must be above 0, got {truncation}")
        low = 0.5 * math.erfc(truncation / math.sqrt(2))
        u = low + u * (1 - 2 * low)
    return torch.special.ndtri(u).float()


def random_labels(seed: int, stream: Stream, start: int, n: int, num_classes: int) -> Tensor:
    """Uniform class numbers [n] int64 of samples start .. start + n."""
    return (_uniform(seed, 2 * stream + 1, start, n, 1)[:, 0] * num_classes).long()
