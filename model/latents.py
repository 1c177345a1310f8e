"""Random numbers that belong to a place, not to a process: word i of stream s under a seed is always the same.

A counter-based generator (Philox 4x64) is keyed by (seed, stream) and positioned at the sample's number, so any rank, batch
size or restart draws the same latent for the same sample. Normals come from the inverse distribution function: one word
each, and truncation (BigGAN, section 3.1) needs no rejection, so a sample moves smoothly as the truncation changes. All of
it is computed on the CPU, in float64: every device gets the same bits.
"""

import enum
import math
from typing import Literal

import numpy as np
import torch
from torch import Tensor

Truncation = Literal["truncated-normal", "scaled-normal", "scaled-truncated-normal"]
"""What truncation at t means. truncated-normal: conditioned on |z| <= t (the paper's, StudioGAN's); scaled-normal: N(0, t^2)
(BigGAN-PyTorch's); scaled-truncated-normal: t times a normal conditioned on |z| <= 2 (TF-Hub's, Hugging Face's)."""

_WORDS = 4  # uint64 words per step of the counter
_BELOW_1 = 1 - 2.0**-53  # the largest float64 there: the topmost word would round to 1, whose normal is infinite
_TF_HUB_BOUND = 2.0


class RandomStream(enum.IntEnum):
    """What a sequence of numbers is for. Numbers are part of saved runs: append, never reorder."""

    D_STEP = 0
    G_STEP = 1
    SAMPLES = 2
    STANDING = 3
    SHEET = 4
    AUGMENT_D = 5
    AUGMENT_G = 6


def _uniform(seed: int, stream: int, start: int, n: int, width: int) -> Tensor:
    """[n, width] float64 in (0, 1), for samples start .. start + n; on the CPU, whoever needs them."""
    steps = -(-width // _WORDS)
    bits = np.random.Philox(key=np.array([seed, stream], np.uint64), counter=start * steps)
    words = bits.random_raw(n * steps * _WORDS).reshape(n, steps * _WORDS)[:, :width]
    u = ((words >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
    return torch.from_numpy(u.clip(max=_BELOW_1))


def uniforms(seed: int, stream: RandomStream, start: int, n: int, width: int) -> Tensor:
    """[n, width] float64, uniform in (0, 1), for samples start .. start + n."""
    return _uniform(seed, 2 * stream, start, n, width)


def latents(
    seed: int,
    stream: RandomStream,
    start: int,
    n: int,
    dim: int,
    truncation: float | None = None,
    method: Truncation = "truncated-normal",
) -> Tensor:
    """Latents [n, dim] float32 on the CPU, of samples start .. start + n: standard normals, or truncated at t > 0 by `method`.

    Raises ValueError for another t. The scaled-truncated-normal of TF-Hub and Hugging Face has t = 1 where nobody asks.
    """
    u = _uniform(seed, 2 * stream, start, n, dim)
    if truncation is None:
        return torch.special.ndtri(u).float()
    if not truncation > 0:
        raise ValueError(f"truncation must be above 0, got {truncation}")
    if method == "scaled-normal":
        return (truncation * torch.special.ndtri(u)).float()
    bound, scale = (truncation, 1.0) if method == "truncated-normal" else (_TF_HUB_BOUND, truncation)
    low = 0.5 * math.erfc(bound / math.sqrt(2))
    return (scale * torch.special.ndtri(low + u * (1 - 2 * low))).float()


def random_labels(seed: int, stream: RandomStream, start: int, n: int, num_classes: int) -> Tensor:
    """Uniform class numbers [n] int64 of samples start .. start + n."""
    return (_uniform(seed, 2 * stream + 1, start, n, 1)[:, 0] * num_classes).long()


def interpolated(a: Tensor, b: Tensor, steps: int) -> Tensor:
    """From each latent of `a` [n, dim] to that of `b` in `steps` >= 2 points, ends included: [n * steps, dim] float32.

    Directions move on a great circle (White, arXiv 1609.04468) and norms on a line: halfway on a straight line a latent would
    be shorter than any that the generator has seen.
    """
    t = torch.linspace(0, 1, steps, dtype=torch.float64)[None, :, None]
    a, b = a.double()[:, None], b.double()[:, None]
    from_norm, to_norm = a.norm(dim=2, keepdim=True), b.norm(dim=2, keepdim=True)
    angle = ((a * b).sum(2, keepdim=True) / (from_norm * to_norm)).clamp(-1, 1).acos()
    bent = angle.sin() > 1e-6  # else the circle is a line, and its formula 0 / 0
    from_share, to_share = (torch.where(bent, (s * angle).sin() / angle.sin().where(bent, 1), s) for s in (1 - t, t))
    norm = (1 - t) * from_norm + t * to_norm
    return (from_share * a * (norm / from_norm) + to_share * b * (norm / to_norm)).flatten(0, 1).float()
