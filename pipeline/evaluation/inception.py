"""The Inception v3 whose features FID and IS are defined on: the graph of 2015-12-05, not torchvision's network.

Szegedy et al., arXiv 1512.00567, as TensorFlow's archive has it: average pools count no padding, the last block pools by
maximum, and there are 1,008 classes. Parameters have the names of the usual PyTorch port, `pt_inception-2015-12-05`.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

FEATURES, CLASSES = 2048, 1008


class BranchConv(NamedTuple):
    """A convolution of a branch."""

    name: str
    outputs: int
    kernel: tuple[int, int]
    stride: int = 1


Branch = tuple[BranchConv | tuple[BranchConv, BranchConv], ...]
"""Steps one after the other; a pair works on the same input and is concatenated."""


def _chain(name: str, *steps: tuple[int, int, int], stride: int = 1) -> Branch:
    """`name`_1, `name`_2, ... of (outputs, height, width) of kernels; the last has the stride."""
    last = len(steps)
    return tuple(BranchConv(f"{name}_{i}", o, (h, w), stride if i == last else 1) for i, (o, h, w) in enumerate(steps, 1))


def _pair(name: str) -> tuple[BranchConv, BranchConv]:
    return BranchConv(f"{name}a", 384, (1, 3)), BranchConv(f"{name}b", 384, (3, 1))


def _a(pool: int) -> tuple[Branch, ...]:
    return (
        (BranchConv("branch1x1", 64, (1, 1)),),
        _chain("branch5x5", (48, 1, 1), (64, 5, 5)),
        _chain("branch3x3dbl", (64, 1, 1), (96, 3, 3), (96, 3, 3)),
        (BranchConv("branch_pool", pool, (1, 1)),),
    )


def _c(width: int) -> tuple[Branch, ...]:
    return (
        (BranchConv("branch1x1", 192, (1, 1)),),
        _chain("branch7x7", (width, 1, 1), (width, 1, 7), (192, 7, 1)),
        _chain("branch7x7dbl", (width, 1, 1), (width, 7, 1), (width, 1, 7), (width, 7, 1), (192, 1, 7)),
        (BranchConv("branch_pool", 192, (1, 1)),),
    )


_B: tuple[Branch, ...] = (
    (BranchConv("branch3x3", 384, (3, 3), 2),),
    _chain("branch3x3dbl", (64, 1, 1), (96, 3, 3), (96, 3, 3), stride=2),
    (),
)
_D: tuple[Branch, ...] = (
    _chain("branch3x3", (192, 1, 1), (320, 3, 3), stride=2),
    _chain("branch7x7x3", (192, 1, 1), (192, 1, 7), (192, 7, 1), (192, 3, 3), stride=2),
    (),
)
_E: tuple[Branch, ...] = (
    (BranchConv("branch1x1", 320, (1, 1)),),
    (BranchConv("branch3x3_1", 384, (1, 1)), _pair("branch3x3_2")),
    (*_chain("branch3x3dbl", (448, 1, 1), (384, 3, 3)), _pair("branch3x3dbl_3")),
    (BranchConv("branch_pool", 192, (1, 1)),),
)
_MIXED: dict[str, tuple[int, str, tuple[Branch, ...]]] = {
    "Mixed_5b": (192, "average", _a(32)),
    "Mixed_5c": (256, "average", _a(64)),
    "Mixed_5d": (288, "average", _a(64)),
    "Mixed_6a": (288, "half", _B),
    "Mixed_6b": (768, "average", _c(128)),
    "Mixed_6c": (768, "average", _c(160)),
    "Mixed_6d": (768, "average", _c(160)),
    "Mixed_6e": (768, "average", _c(192)),
    "Mixed_7a": (768, "half", _D),
    "Mixed_7b": (1280, "average", _E),
    "Mixed_7c": (2048, "maximum", _E),
}
"""Inputs, what the last branch pools by, branches."""


class Convolution(nn.Module):
    """Convolution, batch norm, ReLU: [n, C, h, w] -> [n, outputs, h', w']. With stride 1 the size stays, if padded."""

    def __init__(self, inputs: int, outputs: int, kernel: tuple[int, int], stride: int = 1, padded: bool = True):
        super().__init__()
        padding = (kernel[0] // 2, kernel[1] // 2) if stride == 1 and padded else (0, 0)
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


class Mixed(nn.Module):
    """Branches side by side, the last on the pooled input: [n, C, h, w] -> [n, C', h', w']."""

    def __init__(self, inputs: int, pool: str, branches: tuple[Branch, ...]):
        super().__init__()
        self.pool, self.branches = pool, branches
        for branch in branches:
            width = inputs
            for step in branch:
                parts = (step,) if isinstance(step, BranchConv) else step
                for part in parts:
                    self.add_module(part.name, Convolution(width, part.outputs, part.kernel, part.stride))
                width = sum(part.outputs for part in parts)

    def forward(self, x: Tensor) -> Tensor:
        ends = [self._run(branch, x if branch is not self.branches[-1] else self._pooled(x)) for branch in self.branches]
        return torch.cat(ends, 1)

    def _run(self, branch: Branch, x: Tensor) -> Tensor:
        for step in branch:
            parts = (step,) if isinstance(step, BranchConv) else step
            x = torch.cat([self.get_submodule(part.name)(x) for part in parts], 1)
        return x

    def _pooled(self, x: Tensor) -> Tensor:
        if self.pool == "average":
            return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
        return F.max_pool2d(x, 3, 2) if self.pool == "half" else F.max_pool2d(x, 3, 1, 1)


class Inception(nn.Module):
    """Images [n, 3, 299, 299] in -1..1 -> features [n, 2048] and logits [n, 1008] without the last layer's bias.

    The bias is left out, as in the graph that the Inception Score is defined on.
    """

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = Convolution(3, 32, (3, 3), 2)
        self.Conv2d_2a_3x3 = Convolution(32, 32, (3, 3), padded=False)
        self.Conv2d_2b_3x3 = Convolution(32, 64, (3, 3))
        self.Conv2d_3b_1x1 = Convolution(64, 80, (1, 1))
        self.Conv2d_4a_3x3 = Convolution(80, 192, (3, 3), padded=False)
        for name, (inputs, pool, branches) in _MIXED.items():
            self.add_module(name, Mixed(inputs, pool, branches))
        self.fc = nn.Linear(FEATURES, CLASSES)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(F.max_pool2d(x, 3, 2)))
        x = F.max_pool2d(x, 3, 2)
        for name in _MIXED:
            x = self.get_submodule(name)(x)
        features = x.mean((2, 3))
        return features, F.linear(features, self.fc.weight)
