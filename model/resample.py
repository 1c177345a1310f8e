"""3x3 convolutions right behind nearest upsampling or right before average pooling, as one convolution.

Both pairs are linear and local, so a kernel of 4x4 with stride 2 does their work (StyleGAN, arXiv 1812.04948, has it for speed,
too): its entries are sums of the 3x3 kernel's, it takes 4/9 of the multiplications, and the large map between the two never
exists. The results are the same but for rounding.
"""

from contextlib import nullcontext
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

ENOUGH = 256
"""Places (samples x height x width) of the smaller map from which on this pays: adding up a kernel costs as much as a hundred
or two of them, whatever the widths (measured on a CPU; a GPU's micro-batches have thousands in the smallest map)."""

Resize = Literal["up", "down"]
MEMORY: dict[Resize, tuple[int, ...]] = {"up": (1, 2, 3, 0), "down": (0, 2, 3, 1)}
"""In which order in memory a weight [out, in, 3, 3] has its dimensions if its kernel of 4x4 is made without a copy."""


def doubled(x: Tensor) -> Tensor:
    """Nearest upsampling, as precise as x: [n, C, h, w] -> [n, C, 2h, 2w].

    On a GPU autocast would make it fp32, and with it all of a generator's residual stream.
    """
    device = x.device.type
    with torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext():
        return F.interpolate(x, scale_factor=2.0)


def pays(x: Tensor, scale: float) -> bool:
    """Whether x [n, C, h, w], resized by `scale` (2 or 1/2) in both directions, has `ENOUGH` places on its smaller side."""
    n, _, h, w = x.shape
    return n * h * w * min(1.0, scale * scale) >= ENOUGH


def upsampled_conv(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """conv2d(interpolate(x, scale_factor=2), weight, bias, padding=1): x [n, in, h, w] -> [n, out, 2h, 2w]."""
    return F.conv_transpose2d(x, _four(weight, "up"), bias, stride=2, padding=1)


def conv_pooled(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """avg_pool2d(conv2d(x, weight, bias, padding=1), 2): x [n, in, h, w] -> [n, out, h / 2, w / 2]."""
    return F.conv2d(x, _four(weight, "down"), bias, stride=2, padding=1)


def _four(weight: Tensor, resize: Resize) -> Tensor:
    """Kernels [out, in, 3, 3] -> [out, in, 4, 4], for `up` [in, out, 4, 4]; channels last, and as precise as the weight."""
    with torch.autocast(weight.device.type, enabled=False):
        # Two neighbours each: rows 1 0 0, 1 1 0, 0 1 1, 0 0 1. Made on the device: a copy from the host would wait for it.
        sums = torch.ones(4, 3, dtype=weight.dtype, device=weight.device).tril().triu(-1)
        if resize == "up":  # transposed convolution walks over its kernel backwards
            sums = sums.flip(0)
        plane = torch.kron(sums, sums) / (1 if resize == "up" else 4)
        rows = weight.permute(MEMORY[resize])
        first, _, _, last = rows.shape
        return (plane @ rows.reshape(first, 9, last)).view(first, 4, 4, last).permute(0, 3, 1, 2)
