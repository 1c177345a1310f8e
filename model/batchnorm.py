"""Batch norm whose group is a number of samples, not a number of processes.

A group is a run of consecutive samples of the global batch. It may be a part of a micro-batch, exactly one, or span the
micro-batches of several consecutive ranks; the result is the same (`pipeline.engine.zero` picks the process group). There are
no running averages: in a GAN they lag behind weights that move fast. Evaluation uses standing statistics (BigGAN, appendix E).
"""

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


def _precise(x: Tensor) -> torch.dtype:
    """What statistics of x can be taken in."""
    return torch.promote_types(x.dtype, torch.float32)


def _moments(x: Tensor, group: dist.ProcessGroup | None) -> tuple[Tensor, Tensor, Tensor]:
    """Count [1], mean [C] and variance [C] of x [n, C, ...] over all but C, and over the ranks of `group`; float64."""
    # float64, all of it: the sum of squares minus the squared mean loses most digits where the mean is large.
    var, mean = (m.double() for m in torch.var_mean(x.to(_precise(x)), [d for d in range(x.dim()) if d != 1], correction=0))
    count = mean.new_full((1,), x.numel() // x.shape[1])
    if group is None:
        return count, mean, var
    sums = torch.cat((count, mean * count, (var + mean.square()) * count))
    dist.all_reduce(sums, group=group)
    count, mean, square = sums[:1], *(sums[1:] / sums[:1]).chunk(2)
    return count, mean, (square - mean.square()).clamp_min(0)


class _NormaliseAcrossRanks(torch.autograd.Function):
    """(x - mean) / std over the union of the ranks' x [n, C, ...]; ranks may hold unequal n.

    Backward keeps the result alone, in x's precision: a layer behind it keeps the same tensor.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, eps: float, group: dist.ProcessGroup) -> Tensor:
        total, mean, var = _moments(x, group)
        precise = _precise(x)
        y = F.batch_norm(x, mean.to(precise), var.to(precise), None, None, False, 0.0, eps)
        ctx.save_for_backward(y, (var + eps).rsqrt().to(precise), total)
        ctx.group = group
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (g,) = grads
        y, inverse, total = ctx.saved_tensors
        dims, shape = [d for d in range(y.dim()) if d != 1], [1, -1] + [1] * (y.dim() - 2)
        sums = torch.stack([part.sum(dims, dtype=inverse.dtype) for part in (g, g * y)])
        dist.all_reduce(sums, group=ctx.group)
        mean_g, mean_gy = (mean.view(shape) for mean in (sums / total.to(sums.dtype)).unbind())
        slope = torch.addcmul(mean_g, y, mean_gy)
        return torch.sub(g, slope, out=slope).mul_(inverse.view(shape)).to(g.dtype), None, None


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
        self.recorded: list[tuple[Tensor, Tensor, Tensor]] | None = None
        self.register_buffer("mean", torch.full((features,), float("nan")))
        self.register_buffer("var", torch.full((features,), float("nan")))

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return F.batch_norm(x, self.mean, self.var, None, None, False, 0.0, self.eps)
        if self.recorded is not None:
            self.recorded.append(_moments(x, self.process_group))
            _, mean, var = (m.to(_precise(x)) for m in self.recorded[-1])
            return F.batch_norm(x, mean, var, None, None, False, 0.0, self.eps)
        size = self.group_samples or len(x)
        if size >= len(x):  # the gradient of one part would be a copy
            return self._normalise(x)
        return torch.cat([self._normalise(part) for part in x.split(size)])

    def _normalise(self, x: Tensor) -> Tensor:
        if self.process_group is not None:
            return _NormaliseAcrossRanks.apply(x, self.eps, self.process_group)  # type: ignore[no-untyped-call]
        return F.batch_norm(x, None, None, None, None, True, 0.0, self.eps)


def batch_norms(network: nn.Module) -> list[BatchNorm]:
    return [layer for layer in network.modules() if isinstance(layer, BatchNorm)]


def set_group(network: nn.Module, samples: int | None, process_group: dist.ProcessGroup | None = None) -> None:
    """Normalise each run of `samples` samples of a forward (None: all) by itself, or with its like on `process_group`'s ranks.

    A forward of several micro-batches, as D's of real and fake images, so keeps their statistics apart.
    """
    for layer in batch_norms(network):
        layer.group_samples, layer.process_group = samples, process_group


@torch.no_grad()
def standing_statistics(
    generator: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], process_group: dist.ProcessGroup | None = None
) -> None:
    """Fill the eval-mode statistics from the pooled moments of several training-mode forwards, and switch to eval mode.

    `batches` yields (z [n, latent_dim], y [n]); with `process_group`, each rank's part of a batch. The statistics belong to
    the distribution of these latents: sampling at another truncation needs its own. Raises ValueError without any batch.
    """
    layers = batch_norms(generator)
    set_group(generator, None, process_group)
    generator.train()
    for layer in layers:
        layer.recorded = []
    for z, y in batches:
        generator(z, y)
    for layer in layers:
        if not layer.recorded:
            raise ValueError("standing_statistics needs at least one batch of (z, y)")
        count, mean, var = (torch.stack(moment) for moment in zip(*layer.recorded, strict=True))
        share = count / count.sum(0)
        pooled = (share * mean).sum(0)
        layer.var.copy_((share * (var + (mean - pooled).square())).sum(0))
        layer.mean.copy_(pooled)
        layer.recorded = None
    set_group(generator, None)
    generator.eval()
