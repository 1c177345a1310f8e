"""The objectives, against their equations in probabilities and plain Python."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model.losses import LOSSES, hinge_d, hinge_g

scores = st.lists(st.floats(-10, 10, width=32), min_size=1, max_size=8)


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def probability(score: float) -> float:
    return 1 / (1 + math.exp(-score))


@given(scores, scores)
def test_hinge_is_the_papers_sum(real: list[float], fake: list[float]) -> None:
    on_real = sum(max(0.0, 1 - s) for s in real) / len(real)
    on_fake = sum(max(0.0, 1 + s) for s in fake) / len(fake)
    torch.testing.assert_close(hinge_d(torch.tensor(real), torch.tensor(fake)), torch.tensor(on_real + on_fake))
    torch.testing.assert_close(hinge_g(torch.tensor(fake)), torch.tensor(-sum(fake) / len(fake)))


def test_d_learns_only_from_scores_inside_the_margin() -> None:
    real, fake = torch.tensor([-0.5, 0.5, 1.5], requires_grad=True), torch.tensor([-1.5, 0.0, 2.0], requires_grad=True)
    hinge_d(real, fake).backward()
    torch.testing.assert_close(real.grad, torch.tensor([-1.0, -1.0, 0.0]) / 3)
    torch.testing.assert_close(fake.grad, torch.tensor([0.0, 1.0, 1.0]) / 3)


@given(scores, scores)
def test_every_row_of_the_table_is_its_papers_equation(real: list[float], fake: list[float]) -> None:
    log_real = mean([math.log(probability(s)) for s in real])
    log_fake, log_not_fake = mean([math.log(probability(s)) for s in fake]), mean([math.log(probability(-s)) for s in fake])
    expected = {
        "hinge": (mean([max(0.0, 1 - s) for s in real]) + mean([max(0.0, 1 + s) for s in fake]), -mean(fake)),
        "minimax": (-log_real - log_not_fake, log_not_fake),
        "non-saturating": (-log_real - log_not_fake, -log_fake),
        "wasserstein": (mean(fake) - mean(real), -mean(fake)),
    }
    logits = torch.tensor(real).double(), torch.tensor(fake).double()
    assert LOSSES.keys() == expected.keys()
    for name, loss in LOSSES.items():
        assert (loss.d(*logits).item(), loss.g(logits[1]).item()) == pytest.approx(expected[name], rel=1e-6, abs=1e-6), name


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_against_finite_differences(name: str) -> None:
    real = torch.tensor([-3.0, 0.2, 2.5], dtype=torch.float64, requires_grad=True)
    fake = torch.tensor([1.5, -0.3], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(LOSSES[name].d, (real, fake))
    assert torch.autograd.gradcheck(LOSSES[name].g, (fake,))


def test_logits_far_beyond_the_sigmoids_range() -> None:
    """In float32 sigmoid(1e4) is 1 and log(1 - 1) infinite; the loss is 1e4, with the gradient of a wrong and sure D."""
    for wrong, d_loss, slope in ((1e4, 2e4, 1.0), (-1e4, 0.0, 0.0)):
        for name in ("minimax", "non-saturating"):
            real, fake = torch.tensor([-wrong], requires_grad=True), torch.tensor([wrong], requires_grad=True)
            loss = LOSSES[name].d(real, fake)
            assert loss.item() == d_loss
            assert [g.item() for g in torch.autograd.grad(loss, (real, fake))] == [-slope, slope]
    for name, logit, g_loss, slope in (
        ("minimax", 1e4, -1e4, -1.0),
        ("minimax", -1e4, 0.0, 0.0),  # saturated: a G that D sees through learns nothing
        ("non-saturating", 1e4, 0.0, 0.0),
        ("non-saturating", -1e4, 1e4, -1.0),
    ):
        fake = torch.tensor([logit], requires_grad=True)
        loss = LOSSES[name].g(fake)
        assert (loss.item(), torch.autograd.grad(loss, fake)[0].item()) == (g_loss, slope), (name, logit)
