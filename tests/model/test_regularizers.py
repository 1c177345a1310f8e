"""The penalties, against their equations written out plainly, and their gradients against finite differences."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from model.regularizers import consistency, gradient_penalty, lecam, orthogonal


def products_of_rows(weight: Tensor) -> Tensor:
    """Sum of <w_i, w_j>^2 over i != j."""
    rows = [row.flatten().double() for row in weight]
    return sum(((a @ b) ** 2 for i, a in enumerate(rows) for j, b in enumerate(rows) if i != j), torch.zeros(()).double())


@settings(max_examples=30)
@given(shapes=st.lists(st.lists(st.integers(1, 6), min_size=2, max_size=4), min_size=1, max_size=3), seed=st.integers(0, 99))
def test_orthogonal_is_the_sum_over_pairs_of_rows(shapes: list[list[int]], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    weights = [torch.randn(shape, generator=generator) for shape in shapes]
    expected = sum((products_of_rows(w) for w in weights), torch.zeros(()).double())
    torch.testing.assert_close(orthogonal(iter(weights)).double(), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("shape", [(3, 5), (5, 3), (4, 4), (2, 3, 2, 2)])
def test_the_gradient_of_orthogonal_is_twice_what_biggan_pytorch_writes(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    weight = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda w: orthogonal([w]), (weight,))
    (gradient,) = torch.autograd.grad(orthogonal([weight]), weight)
    w = weight.detach().flatten(1)
    theirs = 2 * (w @ w.mT * (1 - torch.eye(len(w)))) @ w
    torch.testing.assert_close(gradient.flatten(1), 2 * theirs)


@pytest.mark.parametrize("noise", [0, 1e-3])
@pytest.mark.parametrize(("out", "rest"), [(256, 256), (256, 1024), (512, 256), (257, 256), (1024, 20)])
def test_orthogonal_keeps_its_digits_in_float32(out: int, rest: int, noise: float) -> None:
    """The smaller Gram matrix must not be bought with cancellation: 0 for orthogonal rows, where there can be such."""
    torch.manual_seed(0)
    weight = nn.init.orthogonal_(torch.empty(out, rest)) + noise * torch.randn(out, rest)
    gram = weight.double() @ weight.double().mT
    expected = (gram - gram.diag().diag()).square().sum().float()
    torch.testing.assert_close(orthogonal([weight]), expected, rtol=5e-5, atol=1e-8)
    with FlopCounterMode(display=False) as count:
        orthogonal([weight])
    assert count.get_total_flops() == 2 * min(out, rest) ** 2 * max(out, rest)


def test_orthogonal_is_float32_under_autocast() -> None:
    weights = [torch.randn(8, 20), torch.randn(20, 8)]
    expected = orthogonal(weights)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(orthogonal(weights), expected)


def discriminator() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(12, 1), nn.Flatten(0)).double()


def test_gradient_penalty_is_the_mean_squared_slope_of_each_samples_logit() -> None:
    d, step = discriminator(), 1e-5
    x = torch.randn(3, 2, 4, 4).double().requires_grad_()
    slopes = torch.zeros(3).double()
    for pixel in range(32):
        aside = torch.zeros(32).double()
        aside[pixel] = step
        difference = d(x + aside.view(2, 4, 4)) - d(x - aside.view(2, 4, 4))
        slopes += (difference.detach() / (2 * step)) ** 2
    torch.testing.assert_close(gradient_penalty(d(x), x), slopes.mean(), rtol=1e-7, atol=0)


def test_ds_parameters_learn_from_the_gradient_penalty() -> None:
    """Its gradient by the parameters, a second derivative of D, against finite differences."""
    d = discriminator()
    x = torch.randn(2, 2, 4, 4).double().requires_grad_()
    names, parameters = zip(*d.named_parameters(), strict=True)

    def penalty(*values: Tensor) -> Tensor:
        return gradient_penalty(functional_call(d, dict(zip(names, values, strict=True)), (x,)), x)

    # The last bias moves no slope, so autograd leaves it without a gradient.
    assert torch.autograd.gradcheck(lambda *values: penalty(*values, parameters[-1].detach()), parameters[:-1])


def test_gradient_penalty_is_float32_under_autocast() -> None:
    torch.manual_seed(0)
    d = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 1), nn.Flatten(0))
    x = torch.randn(4, 1, 4, 4, requires_grad=True)
    expected = gradient_penalty(d(x), x)
    logits = d(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(gradient_penalty(logits, x), expected)


scores = st.lists(st.floats(-10, 10, width=32), min_size=1, max_size=8)


@given(real=scores, fake=scores, ema_real=st.floats(-2, 2), ema_fake=st.floats(-2, 2))
def test_lecam_is_the_papers_equation(real: list[float], fake: list[float], ema_real: float, ema_fake: float) -> None:
    """Each kind is held to the other kind's anchor, on both sides of it: without the relu of the paper's code."""
    on_real = sum((s - ema_fake) ** 2 for s in real) / len(real)
    on_fake = sum((s - ema_real) ** 2 for s in fake) / len(fake)
    value = lecam(torch.tensor(real), torch.tensor(fake), ema_real, ema_fake)
    torch.testing.assert_close(value, torch.tensor(on_real + on_fake), rtol=1e-5, atol=1e-5)


@given(scores)
def test_consistency_is_the_mean_squared_difference(logits: list[float]) -> None:
    transformed = logits[::-1]
    expected = sum((a - b) ** 2 for a, b in zip(logits, transformed, strict=True)) / len(logits)
    torch.testing.assert_close(consistency(torch.tensor(logits), torch.tensor(transformed)), torch.tensor(expected))


@pytest.mark.parametrize("penalty", [consistency, lambda a, b: lecam(a, b, 0.7, -0.4)])
def test_both_arguments_learn(penalty: Callable[[Tensor, Tensor], Tensor]) -> None:
    one = torch.tensor([0.3, -2.0, 1.1], dtype=torch.float64, requires_grad=True)
    other = torch.tensor([0.1, 0.5, -0.6], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(penalty, (one, other))
    assert all((gradient != 0).all() for gradient in torch.autograd.grad(penalty(one, other), (one, other)))
