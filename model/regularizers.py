"""Penalties that a trainer adds to a loss, each without its coefficient. All return a scalar []."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def orthogonal(weights: Iterable[Tensor]) -> Tensor:
    """Sum of ||W W^T o (1 - I)||_F^2 over at least one weight, seen as a matrix W [out, rest] (BigGAN, equation 3).

    Add 1e-4 of it (the paper's value) to the loss, once per optimiser step: it does not depend on a micro-batch. The gradient
    is the formula's own, 4 (W W^T o (1 - I)) W; BigGAN-PyTorch writes half of that into `.grad`.
    """
    weights = [weight.flatten(1) for weight in weights]
    with torch.autocast(weights[0].device.type, enabled=False):
        return torch.stack([_off_diagonal(w) for w in weights]).sum()


def _off_diagonal(w: Tensor) -> Tensor:
    if w.shape[0] > w.shape[1]:
        # ||W W^T||_F = ||W^T W||_F, and the generator's first layer at 128 px has 20^2 products instead of 24576^2. The rows of
        # a tall W cannot all be orthogonal, so the difference is not small: its relative error in float32 measures 1e-7 where
        # out >= 2 rest and 2e-5 where out = rest + 1. On a wide W with orthogonal rows it is 3e6, so those go the other way.
        return (w.mT @ w).square().sum() - w.square().sum(1).square().sum()
    return _Products.apply(w)  # type: ignore[no-untyped-call]


class _Products(torch.autograd.Function):
    """||W W^T o (1 - I)||_F^2. By itself, autograd would not know that W W^T is symmetric, and make a third product of it."""

    @staticmethod
    def forward(ctx: Any, w: Tensor) -> Tensor:
        products = (w @ w.mT).fill_diagonal_(0.0)
        ctx.save_for_backward(w, products)
        return products.square().sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        w, products = ctx.saved_tensors
        with torch.autocast(w.device.type, enabled=False):
            return 4 * grads[0] * (products @ w)


def gradient_penalty(logits: Tensor, x: Tensor) -> Tensor:
    """E[||dD(x)/dx||^2], R1 (Mescheder et al., arXiv 1801.04406, equation 9): logits [n] of real images x [n, C, h, w].

    Multiply by gamma / 2. `x` must have required its gradient before D saw it, and each logit must depend on its own image
    only (no batch norm in D). Run D's forward without autocast, too: its backward repeats the forward's precision.
    """
    # Not in bf16 under the caller's autocast, which casts the matrix products of a backward that is itself differentiated.
    with torch.autocast(x.device.type, enabled=False):
        (gradient,) = torch.autograd.grad(logits.sum(), x, create_graph=True)
        return gradient.square().sum((1, 2, 3)).mean()


def lecam(real: Tensor, fake: Tensor, ema_real: float, ema_fake: float) -> Tensor:
    """E[(D(x) - ema_fake)^2] + E[(D(G(z)) - ema_real)^2] (LeCam, arXiv 2104.03310, equation 4): logits [n] each.

    The anchors are moving averages of D's mean logit on real and on fake images. This is the paper's equation; its code applies
    relu to D(x) - ema_fake and to ema_real - D(G(z)), against instability early on, when D may rank fakes above real images.
    """
    return (real - ema_fake).square().mean() + (fake - ema_real).square().mean()


def consistency(logits: Tensor, transformed: Tensor) -> Tensor:
    """E[(D(x) - D(T(x)))^2]: logits [n] of images and of their transforms. Multiply by 10.

    On real images CR-GAN (arXiv 1910.12027, section 2.2); on real and on fake images balanced CR (arXiv 2002.04724).
    """
    return (logits - transformed).square().mean()
