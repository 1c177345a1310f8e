"""Spectral normalisation (Miyato et al., arXiv 1802.05957) for a GAN that accumulates gradients.

The largest singular value of a weight W, seen as a matrix [out, rest], is estimated as sigma = u^T W v. The vectors are
buffers that only `power_iteration` moves, and a trainer calls it once per optimiser step: a forward never changes them, so
accumulation, recomputation in activation checkpointing and evaluation all see the same network.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from .resample import MEMORY, Resize, conv_pooled, doubled, pays, upsampled_conv

CHANNELS_LAST = (0, 2, 3, 1)
OUTWEIGHS = 2
"""How many times more values than a convolution makes its weight has to have to be dearer to divide, on a CPU: measured with 4
and 8 images, at 3.4 times and more that was quicker (16x16, 768 channels), at 0.8 times slower (32x32, 384 channels)."""


class SpectralNorm(nn.Module):
    """Mixin for a layer with a `weight` parameter: adds the buffers `u` [out] and `v` [rest], and W / sigma.

    Without an eps the layer is a plain one: no buffers, and the weight as it is.
    """

    weight: Tensor
    u: Tensor
    v: Tensor
    sn_eps: float | None

    def init_spectral(self, eps: float | None) -> None:
        """Orthogonal initialisation (BigGAN, section 3), then vectors that have already converged on it."""
        self.sn_eps = eps
        with torch.no_grad():
            weight = self.outputs_first()
            if not weight.is_meta:  # there, shapes are all there is
                weight.copy_(nn.init.orthogonal_(torch.empty(weight.shape)))
        if eps is None:
            return
        matrix = self.matrix().detach()
        self.register_buffer("u", F.normalize(torch.randn(matrix.shape[0]), dim=0, eps=eps))
        self.register_buffer("v", F.normalize(torch.randn(matrix.shape[1]), dim=0, eps=eps))
        _iterate([self], 0 if self.weight.is_meta else 15)

    def outputs_first(self) -> Tensor:
        """The weight as [out, ...]."""
        return self.weight

    def matrix(self) -> Tensor:
        """The weight as [out, rest]."""
        return self.outputs_first().flatten(1)

    def normalised_weight(self, memory: tuple[int, ...] | None = None) -> Tensor:
        """W / sigma in the weight's shape; sigma is fp32 whatever autocast says, and carries W's gradient.

        `memory` is the order of its dimensions in memory, outermost first, where that saves what follows a copy.
        """
        if self.sn_eps is None:
            return self.weight
        if self.outputs_first() is not self.weight:
            with torch.autocast(self.weight.device.type, enabled=False):
                return self.weight / self.sigma()
        return _DivideBySigma.apply(self.weight, self.u, self.v, memory or tuple(range(self.weight.dim())))  # type: ignore[no-untyped-call]

    def weight_and_sigma(self) -> tuple[Tensor, Tensor]:
        """W as it is and sigma [] in fp32, for a layer [out, ...] that divides what W makes; both carry W's gradient."""
        return _WeightAndSigma.apply(self.weight, self.u, self.v)  # type: ignore[no-untyped-call]

    def sigma(self) -> Tensor:
        """The estimate u^T W v [] of the largest singular value."""
        return torch.dot(self.u, self.matrix() @ self.v)


class _DivideBySigma(torch.autograd.Function):
    """W / (u^T W v) for a weight [out, ...]. By itself, autograd would go through the whole weight three times more.

    d/dW <G, W / sigma> = G / sigma - <G, W> / sigma^2 u v^T (Miyato et al., equation 12). No gradient of that gradient.
    """

    @staticmethod
    def forward(ctx: Any, weight: Tensor, u: Tensor, v: Tensor, memory: tuple[int, ...]) -> Tensor:
        with torch.autocast(weight.device.type, enabled=False):
            sigma = torch.dot(u, weight.flatten(1) @ v)
        ctx.save_for_backward(weight, u, v, sigma)
        places, ordered = [memory.index(dim) for dim in range(weight.dim())], weight.permute(memory)
        if torch.compiler.is_compiling():  # it knows no `out`, and makes one kernel of both
            return (ordered / sigma).contiguous().permute(places)
        return torch.div(ordered, sigma, out=weight.new_empty(ordered.shape)).permute(places)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        weight, u, v, sigma = ctx.saved_tensors
        with torch.autocast(weight.device.type, enabled=False):
            # Convolutions may answer in channels_last; parameters are plain.
            if torch.compiler.is_compiling():
                g = grads[0].contiguous() / sigma
            else:
                g = torch.div(grads[0], sigma, out=torch.empty_like(weight, memory_format=torch.contiguous_format))
            slope = torch.dot(g.flatten(), weight.flatten()) / sigma
            g.flatten(1).addr_(u * -slope, v)
        return g, None, None, None


class _WeightAndSigma(torch.autograd.Function):
    """(W, u^T W v) for a weight [out, ...]. By itself, autograd would make u v^T and add it to W's gradient as a second one."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(u, v)
        with torch.autocast(weight.device.type, enabled=False):
            return weight.view_as(weight), torch.dot(u, weight.flatten(1) @ v)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        u, v = ctx.saved_tensors
        g = grads[0].contiguous()  # which the one convolution that W was for has made, and nobody else has
        g.flatten(1).addr_(u * grads[1], v)
        return g, None, None


def spectral_layers(network: nn.Module) -> Iterator[SpectralNorm]:
    return (layer for layer in network.modules() if isinstance(layer, SpectralNorm) and layer.sn_eps is not None)


@torch.no_grad()
def singular_values(matrix: Tensor, count: int = 3, rounds: int = 10) -> Tensor:
    """Estimates of the largest `count` singular values of [out, rest] from below, descending, [count] or all there are.

    Subspace iteration (Golub & Van Loan, section 8.2.4) with 8 vectors more than are asked for. Uses no random state.
    """
    matrix = matrix.detach().float()
    width = min(count + 8, *matrix.shape)
    vectors = torch.randn(matrix.shape[1], width, generator=torch.Generator().manual_seed(0)).to(matrix.device)
    for _ in range(rounds):
        vectors = torch.linalg.qr(matrix.mT @ (matrix @ vectors)).Q
    return torch.linalg.svdvals(matrix @ vectors)[:count]


def power_iteration(network: nn.Module, times: int = 1) -> None:
    """Advance every spectral layer's u and v; call it once before the forwards of an optimiser step, on all ranks alike."""
    _iterate(list(spectral_layers(network)), times)


@torch.no_grad()
def _iterate(layers: list[SpectralNorm], times: int) -> None:
    """Move u and v by `times` rounds of power iteration, in the parameters' precision (fp32).

    All layers together: a GPU has hardly begun one of them when the next is asked for.
    """
    matrices = [layer.matrix() for layer in layers]
    least = [layer.sn_eps or 0.0 for layer in layers]
    us, vs = [layer.u for layer in layers], [layer.v for layer in layers]

    def put(into: list[Tensor], found: list[Tensor]) -> None:
        lengths = torch._foreach_norm(found)
        torch._foreach_clamp_min_(lengths, least)
        torch._foreach_div_(found, lengths)
        torch._foreach_copy_(into, found)

    for _ in range(times if layers else 0):
        put(vs, [matrix.mT @ u for matrix, u in zip(matrices, us, strict=True)])
        put(us, [matrix @ v for matrix, v in zip(matrices, vs, strict=True)])


@torch.no_grad()
def bake(network: nn.Module) -> None:
    """Make W / sigma each layer's weight, without vectors: the same outputs, for inference only."""
    for layer in list(spectral_layers(network)):
        layer.weight.copy_(layer.normalised_weight())
        layer.sn_eps = None
        del layer.u, layer.v


class SNConv2d(nn.Conv2d, SpectralNorm):
    """[n, in, h, w] -> [n, out, h, w], or [n, out, h / 2, w / 2] by kernel 4 and stride 2.

    `resize` belongs to a kernel of 3: `up` doubles the size by nearest neighbours before it, `down` halves it after it.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        eps: float | None,
        bias: bool = True,
        stride: int = 1,
        resize: Resize | None = None,
    ):
        super().__init__(inputs, outputs, kernel, stride, padding=(kernel - stride + 1) // 2, bias=bias)
        self.resize = resize
        self.init_spectral(eps)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        # In eval mode sizes may be symbols of an exported graph, and few samples are the rule.
        if self.resize and self.training and pays(x, 2.0 if self.resize == "up" else 0.5):
            resized = upsampled_conv if self.resize == "up" else conv_pooled
            return resized(x, self.normalised_weight(MEMORY[self.resize]), self.bias)
        if self.resize == "up":
            x = doubled(x)
        if self.training and self._outweighs(x):
            x = self._then_divided(x)
        else:
            # What follows from x's format, convolutions would make by a copy of their own.
            weight = self.normalised_weight(CHANNELS_LAST)
            x = F.conv2d(x, weight, self.bias, self.stride, self.padding)
        return F.avg_pool2d(x, 2) if self.resize == "down" else x

    def _outweighs(self, x: Tensor) -> bool:
        """Whether the weight is so much larger than what it makes of x that dividing it is the dearer (measured on a CPU)."""
        places = x.shape[0] * x.shape[2] * x.shape[3] // self.stride[0] ** 2
        here = x.device.type == "cpu" and self.sn_eps is not None and not torch.compiler.is_compiling()
        return here and OUTWEIGHS * places < self.weight[0].numel()

    def _then_divided(self, x: Tensor) -> Tensor:
        """conv(x, W) / sigma in place of conv(x, W / sigma), and in the format of W rather than of x."""
        weight, sigma = self.weight_and_sigma()
        x = F.conv2d(x.contiguous(), weight, None, self.stride, self.padding) / sigma
        return x if self.bias is None else x + self.bias[:, None, None].to(x.dtype)


class SNConvTranspose2d(nn.ConvTranspose2d, SpectralNorm):
    """[n, in, h, w] -> [n, out, 2h, 2w]: kernel 4, stride 2."""

    def __init__(self, inputs: int, outputs: int, eps: float | None):
        super().__init__(inputs, outputs, 4, stride=2, padding=1)
        self.init_spectral(eps)
        nn.init.zeros_(self.bias)  # type: ignore[arg-type]

    def outputs_first(self) -> Tensor:
        """Its weight is [in, out, 4, 4]."""
        return self.weight.transpose(0, 1)

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        return F.conv_transpose2d(x, self.normalised_weight(), self.bias, stride=2, padding=1)


class SNLinear(nn.Linear, SpectralNorm):
    """[n, in] -> [n, out]."""

    def __init__(self, inputs: int, outputs: int, eps: float | None, bias: bool = True):
        super().__init__(inputs, outputs, bias)
        self.init_spectral(eps)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.normalised_weight(), self.bias)


class SNEmbedding(nn.Embedding, SpectralNorm):
    """[n] int64 -> [n, dim]."""

    def __init__(self, classes: int, dim: int, eps: float | None):
        super().__init__(classes, dim)
        self.init_spectral(eps)

    def forward(self, y: Tensor) -> Tensor:
        return F.embedding(y, self.normalised_weight())
