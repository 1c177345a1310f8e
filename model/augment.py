"""What D sees instead of the images: DiffAugment, ADA, and the transform of consistency regularisation.

Each maps x [n, C, h, w] in -1..1, with C 1 or 3, to the same shape and dtype, differentiably. The randomness comes in as `u`
[n, K] on x's device, uniform in the open interval (0, 1): float64, because rounding to float32 can make a 1. Row i alone
decides what happens to image i, so any rank, batch size or restart transforms it alike. What a column means is part of saved
runs.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

DIFF_AUGMENT_UNIFORMS = 7
CONSISTENCY_UNIFORMS = 3
ADA_UNIFORMS = 28
_ADA_TRANSFORMS = 13


def diff_augment(x: Tensor, u: Tensor, policy: Sequence[str]) -> Tensor:
    """DiffAugment (arXiv 2006.10738) in the order of `policy`; u [n, DIFF_AUGMENT_UNIFORMS]. Raises KeyError for another name.

    color: brightness + -0.5..0.5, then saturation x 0..2, then contrast x 0.5..1.5. translation: by whole pixels, up to 1/8 of
    the size in each direction; zeros come in. cutout: zeros in a square of half the size, whose centre may be anywhere in the
    image.
    """
    u = u.double()
    for name in policy:
        transform, columns = _DIFF_AUGMENT[name]
        x = transform(x, u[:, columns])
    return x


def _color(x: Tensor, u: Tensor) -> Tensor:
    brightness, saturation, contrast = u.to(x.dtype)[:, :, None, None, None].unbind(1)
    x = x + (brightness - 0.5)
    grey = x.mean(1, keepdim=True)
    x = grey + (x - grey) * (2 * saturation)
    mean = x.mean((1, 2, 3), keepdim=True)
    return mean + (x - mean) * (contrast + 0.5)


def _translation(x: Tensor, u: Tensor) -> Tensor:
    h, w = x.shape[2:]
    rows, columns = _shifted(h, u[:, 0]), _shifted(w, u[:, 1])
    inside = _outer((rows >= 0) & (rows < h), (columns >= 0) & (columns < w))
    return _pick(x, rows.clamp(0, h - 1), columns.clamp(0, w - 1)) * inside


def _cutout(x: Tensor, u: Tensor) -> Tensor:
    def hidden(size: int, u: Tensor) -> Tensor:
        from_centre = torch.arange(size, device=u.device) - (u * (size + 1)).long()[:, None]
        return (from_centre >= -(size // 4)) & (from_centre < size // 4)

    return x * ~_outer(hidden(x.shape[2], u[:, 0]), hidden(x.shape[3], u[:, 1]))


_DIFF_AUGMENT = {
    "color": (_color, slice(0, 3)),
    "translation": (_translation, slice(3, 5)),
    "cutout": (_cutout, slice(5, 7)),
}
Policy = Literal[*_DIFF_AUGMENT]  # type: ignore[valid-type]


def consistency_transform(x: Tensor, u: Tensor) -> Tensor:
    """Mirrors half of the images, then shifts by whole pixels, up to 1/8 of the size each way; u [n, CONSISTENCY_UNIFORMS].

    The transform of CR-GAN (arXiv 1910.12027), which shifts by "a few pixels". What comes in is the image's own reflection: a
    border would tell D which images are transformed.
    """
    u = u.double()
    rows, columns = (_reflected(size, _shifted(size, v)) for size, v in zip(x.shape[2:], u[:, 1:].unbind(1), strict=True))
    return _pick(x, rows, torch.where(u[:, :1] < 0.5, x.shape[3] - 1 - columns, columns))


def _shifted(size: int, u: Tensor) -> Tensor:
    """Where each place of a line comes from, [n, size] int64, when it moves by up to size / 8; may lie outside 0..size - 1."""
    limit = size // 8
    return torch.arange(size, device=u.device) - ((u * (2 * limit + 1)).long() - limit)[:, None]


def _reflected(size: int, places: Tensor) -> Tensor:
    return size - 1 - (size - 1 - places.abs()).abs()


def _outer(rows: Tensor, columns: Tensor) -> Tensor:
    return rows[:, None, :, None] & columns[:, None, None, :]


def _pick(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """x[i, :, rows[i, j], columns[i, k]] at [i, :, j, k]."""
    x = x.gather(2, rows[:, None, :, None].expand_as(x))
    return x.gather(3, columns[:, None, None, :].expand_as(x))


def ada(x: Tensor, u: Tensor, p: float) -> Tensor:
    """The `bgc` pipeline of ADA (arXiv 2006.06676, appendix B) on square images; u [n, ADA_UNIFORMS], p in 0..1.

    Each of these happens to an image with probability p, in this order. Blitting: mirroring (half of the time), 0 to 3
    clockwise quarter turns, translation by whole pixels. General geometry: isotropic scaling, clockwise rotation, anisotropic
    scaling, another rotation, translation. Colour: brightness, contrast, luma flip (half of the time), hue rotation,
    saturation; the last two change nothing where C is 1. An image to which none of them happens comes back bit for bit.

    The geometry is one bilinear sampling with reflection at the edges, which leaves blitting sharp. The paper also filters
    against aliasing (a wavelet, at twice the resolution); this does not.
    """
    whether, how = u.double().split((_ADA_TRANSFORMS, ADA_UNIFORMS - _ADA_TRANSFORMS), 1)
    # Either rotation happens with probability p, so each with less.
    happens = torch.cat((whether[:, :2] < 1 - math.sqrt(1 - p), whether[:, 2:] < p), 1)
    # What does not happen has parameter 0. The translations, columns 3 and 12, have two parameters each.
    on = torch.cat((happens[:, :4], happens[:, 3:], happens[:, 12:]), 1).double()
    before, after, hue = ((2 * how[:, :3] - 1) * math.pi * on[:, :3]).unbind(1)
    pixels = ((2 * how[:, 3:5] - 1) * x.shape[3] / 8).round() * on[:, 3:5]
    mirror, flip = (1 - 2 * (2 * how[:, 5:7]).floor() * on[:, 5:7]).unbind(1)
    quarters = (4 * how[:, 7]).floor() * on[:, 7]
    normal = torch.special.ndtri(how[:, 8:]) * on[:, 8:]
    scale, stretch, brightness, contrast, saturation = normal[:, :5].unbind(1)

    # From a place in the result to its place in x, in float64 and in half sizes from the centre: the last step is undone first.
    blit = torch.stack((mirror, torch.ones_like(mirror)), 1).diag_embed() @ _turned_back(quarters * math.pi / 2)
    stretched_back = torch.stack((-0.2 * stretch, 0.2 * stretch), 1).exp2().diag_embed()
    linear = blit @ _turned_back(before) @ stretched_back @ _turned_back(after) * (-0.2 * scale).exp2()[:, None, None]
    offset = -(linear @ (normal[:, 5:, None] / 4) + blit @ (2 / x.shape[3] * pixels[:, :, None]))

    dtype = torch.promote_types(x.dtype, torch.float32)
    y = _sample(x.to(dtype), linear.to(dtype), offset.to(dtype))
    colour = torch.stack((0.2 * brightness, (0.5 * contrast).exp2(), flip, hue, saturation.exp2()), 1)
    y = _recolour(y, *colour.to(dtype)[:, :, None, None, None].unbind(1))
    return torch.where(happens.any(1)[:, None, None, None], y.to(x.dtype), x)


def _turned_back(angle: Tensor) -> Tensor:
    """[n] -> [n, 2, 2]: undoes a clockwise turn of (x, y), y downwards."""
    cos, sin = angle.cos(), angle.sin()
    return torch.stack((cos, sin, -sin, cos), 1).unflatten(1, (2, 2))


def _sample(x: Tensor, linear: Tensor, offset: Tensor) -> Tensor:
    """x at linear [n, 2, 2] @ place + offset [n, 2, 1]."""
    # Not F.affine_grid: its matrix product may run in TF32 or bf16, and its places are inexact even for the identity.
    down, across = ((2 * torch.arange(size, device=x.device, dtype=x.dtype) + 1) / size - 1 for size in x.shape[2:])
    of_rows = down[:, None, None] * linear[:, None, None, :, 1] + offset[:, None, None, :, 0]
    grid = across[:, None] * linear[:, None, None, :, 0] + of_rows
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


def _recolour(x: Tensor, brightness: Tensor, contrast: Tensor, flip: Tensor, hue: Tensor, saturation: Tensor) -> Tensor:
    """The paper's five 4x4 matrices, multiplied out: each acts on the grey axis and on the plane around it, not across."""
    luma = x.mean(1, keepdim=True)
    quarter_turn = (x.roll(1, 1) - x.roll(-1, 1)) / math.sqrt(3)
    chroma = hue.cos() * (x - luma) + hue.sin() * quarter_turn
    return contrast * (flip * (luma + brightness) + saturation * chroma)


def next_p(p: float, sign_of_real_mean: float, images: int, target: float = 0.6, ramp: int = 500_000) -> float:
    """ADA's p after `images` more images, in 0..1 (arXiv 2006.06676, section 3).

    `sign_of_real_mean` is r_t, the mean of sign(D(x)) over the real images since the last call: above `target`, D overfits and
    p rises. `ramp` is the number of images that p needs from 0 to 1.
    """
    direction = (sign_of_real_mean > target) - (sign_of_real_mean < target)
    return min(max(p + direction * images / ramp, 0.0), 1.0)


@dataclass(frozen=True)
class Augmentation:
    """What D sees instead of the images: of x [n, C, h, w], u [n, uniforms], DiffAugment's policy, and a probability."""

    apply: Callable[[Tensor, Tensor, Sequence[str], float], Tensor]
    uniforms: int
    adapts: bool = False
    """Its probability follows what D says of real images (`next_p`)."""


AUGMENTATIONS = {
    "diffaugment": Augmentation(lambda x, u, policy, _: diff_augment(x, u, policy), DIFF_AUGMENT_UNIFORMS),
    "ada": Augmentation(lambda x, u, _, p: ada(x, u, p), ADA_UNIFORMS, adapts=True),
}
