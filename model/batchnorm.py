"""Batch norm whose group is a number of samples, not a number of processes.

A group is a run of consecutive samples of the global batch. It may be a part of a micro-batch, exactly one, or span the
micro-batches of several consecutive ranks; the result is the same (`pipeline.engines` picks the process group). There are no
running averages: in a GAN they lag behind weights that move fast. Evaluation uses standing statistics (BigGAN, appendix E).
"""

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F


class _NormaliseAcrossRanks(torch.autograd.Function):
    """(x - mean) / std over the union of the ranks' x [n, C, ...]; ranks may hold unequal n."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, eps: float, group: dist.ProcessGroup) -> Tensor:
        dims = [d for d in range(x.dim()) if d != 1]
        # float64, all of it: the sum of squares minus the squared mean loses most digits where the mean is large.
        var, mean = (moment.double() for moment in torch.var_mean(x.float(), dims, correction=0))
        count = x.numel() / x.shape[1]
        moments = torch.stack((torch.full_like(mean, count), mean * count, (var + mean.square()) * count))
        dist.all_reduce(moments, group=group)
        total, mean64 = moments[0], moments[1] / moments[0]
        var64 = (moments[2] / total - mean64.square()).clamp_min(0)
        shape = [1, -1] + [1] * (x.dim() - 2)
        inverse = (var64 + eps).rsqrt().float().view(shape)
        y = (x.float() - mean64.float().view(shape)) * inverse
        ctx.save_for_backward(y, inverse, total)
        ctx.group, ctx.dims, ctx.shape = group, dims, shape
        return y.to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (grad,) = grads
        y, inverse, total = ctx.saved_tensors
        g = grad.float()
        sums = torch.stack((g.sum(ctx.dims), (g * y).sum(ctx.dims)))
        dist.all_reduce(sums, group=ctx.group)
        mean_g, mean_gy = (sums / total.float()).unbind()
        return ((g - mean_g.view(ctx.shape) - y * mean_gy.view(ctx.shape)) * inverse).to(grad.dtype), None, None


class BatchNorm(nn.Module):
    """Normalises [n, C, ...] per channel, without gain and bias.

    In training mode by the statistics of each group; in eval mode by the standing statistics `mean` and `var` [C], which
    `standing_statistics` must have filled.
    """

    mean: Tensor
    var: Tensor

    def __init__(self, features: int, eps: float):
        super().__init__()
        self.eps = eps
        self.group_samples: int | None = None
        self.process_group: dist.ProcessGroup | None = None
        self.moments: list[Tensor] | None = None
        self.register_buffer("mean", torch.full((features,), float("nan")))
        self.register_buffer("var", torch.full((features,), float("nan")))

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return F.batch_norm(x, self.mean, self.var, None, None, False, 0.0, self.eps)
        if self.process_group is not None:
            return _NormaliseAcrossRanks.apply(x, self.eps, self.process_group)  # type: ignore[no-untyped-call]
        if self.moments is not None:
            var, mean = torch.var_mean(x.float(), [d for d in range(x.dim()) if d != 1], correction=0)
            self.moments += [mean.double(), var.double() + mean.double().square()]
            return F.batch_norm(x, mean, var, None, None, False, 0.0, self.eps)
        group = self.group_samples or len(x)
        parts = [F.batch_norm(part, None, None, None, None, True, 0.0, self.eps) for part in x.split(group)]
        return parts[0] if len(parts) == 1 else torch.cat(parts)


def batch_norms(network: nn.Module) -> list[BatchNorm]:
    return [layer for layer in network.modules() if isinstance(layer, BatchNorm)]


def set_group(network: nn.Module, samples: int | None, process_group: dist.ProcessGroup | None = None) -> None:
    """Normalise over `samples` consecutive samples of each forward (None: all), or over all ranks of `process_group`."""
    for layer in batch_norms(network):
        layer.group_samples, layer.process_group = samples, process_group


@torch.no_grad()
def standing_statistics(generator: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Fill the eval-mode statistics from the pooled moments of several training-mode forwards, and switch to eval mode.

    `batches` yields (z [n, z_dim], y [n]). The statistics belong to the distribution of these latents: sampling at another
    truncation needs its own.
    """
    layers = batch_norms(generator)
    set_group(generator, None)
    generator.train()
    for layer in layers:
        layer.moments = []
    for z, y in batches:
        generator(z, y)
    for layer in layers:
        if not layer.moments:
            raise ValueError("standing_statistics needs at least one batch of (z, y)")
        mean = torch.stack(layer.moments[0::2]).mean(0)
        layer.var.copy_(torch.stack(layer.moments[1::2]).mean(0) - mean.square())
        layer.mean.copy_(mean)
        layer.moments = None
    generator.eval()
