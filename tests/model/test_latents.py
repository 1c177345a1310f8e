"""Keyed random numbers: the same for the same place, independent otherwise, with the right distribution."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.latents import RandomStream, Truncation, interpolated, latents, random_labels, uniforms


@settings(max_examples=50)
@given(start=st.integers(0, 2**40), n=st.integers(1, 40), cut=st.integers(0, 40), dim=st.integers(1, 9))
def test_any_cut_of_the_batch_gives_the_same(start: int, n: int, cut: int, dim: int) -> None:
    cut = min(cut, n)
    whole = latents(7, RandomStream.G_STEP, start, n, dim)
    parts = [latents(7, RandomStream.G_STEP, start, cut, dim), latents(7, RandomStream.G_STEP, start + cut, n - cut, dim)]
    assert torch.equal(whole, torch.cat(parts))
    labels = random_labels(7, RandomStream.G_STEP, start, n, 10)
    assert torch.equal(labels[cut:], random_labels(7, RandomStream.G_STEP, start + cut, n - cut, 10))


def test_seeds_and_streams_differ() -> None:
    draws = [latents(seed, stream, 0, 4, 8) for seed in (0, 1) for stream in RandomStream]
    assert len({tuple(draw.flatten().tolist()) for draw in draws}) == len(draws)


def test_distributions() -> None:
    z = latents(0, RandomStream.SAMPLES, 0, 50_000, 4).flatten()
    assert abs(z.mean()) < 0.01 and abs(z.std() - 1) < 0.01 and abs((z**4).mean() - 3) < 0.1
    counts = torch.bincount(random_labels(0, RandomStream.SAMPLES, 0, 50_000, 10), minlength=10)
    assert counts.min() > 4_700 and counts.max() < 5_300


def test_truncation_is_a_truncated_normal() -> None:
    """Against rejection, the definition in BigGAN's section 3.1: values outside are drawn again."""
    z = latents(0, RandomStream.SAMPLES, 0, 50_000, 4, truncation=0.5).flatten()
    reference = latents(1, RandomStream.SAMPLES, 0, 200_000, 4).flatten()
    reference = reference[reference.abs() <= 0.5]
    assert z.abs().max() <= 0.5
    quantiles = torch.linspace(0.05, 0.95, 7)
    torch.testing.assert_close(z[:90_000].quantile(quantiles), reference[:70_000].quantile(quantiles), atol=0.01, rtol=0)
    with pytest.raises(ValueError, match="truncation must be above 0"):
        latents(0, RandomStream.SAMPLES, 0, 1, 4, truncation=0.0)


@pytest.mark.parametrize(
    ("method", "limit", "std"),
    [
        # A standard normal within +-a has variance 1 - 2 a phi(a) / (2 Phi(a) - 1).
        ("truncated-normal", 0.5, 0.2838),
        ("scaled-normal", float("inf"), 0.5),
        ("scaled-truncated-normal", 1.0, 0.4398),
    ],
)
def test_three_meanings_of_truncation(method: Truncation, limit: float, std: float) -> None:
    z = latents(0, RandomStream.SAMPLES, 0, 50_000, 4, 0.5, method)
    assert abs(z.std() - std) < 0.002 and abs(z.mean()) < 0.002
    assert z.abs().max() <= limit and z.abs().max() > min(0.99 * limit, 2)


@pytest.mark.parametrize("method", ["truncated-normal", "scaled-normal", "scaled-truncated-normal"])
@settings(max_examples=20)
@given(n=st.integers(1, 70), dim=st.integers(1, 20), t=st.floats(0.01, 3))
def test_truncated_ones_do_not_depend_on_the_batch_either(method: Truncation, n: int, dim: int, t: float) -> None:
    whole = latents(3, RandomStream.SAMPLES, 5, n, dim, t, method)
    single = [latents(3, RandomStream.SAMPLES, 5 + i, 1, dim, t, method) for i in range(n)]
    assert torch.equal(whole, torch.cat(single))


def test_interpolation_keeps_ends_and_length() -> None:
    a, b = latents(0, RandomStream.SAMPLES, 0, 3, 400), latents(0, RandomStream.SAMPLES, 3, 3, 400)
    path = interpolated(a, b, 5).unflatten(0, (3, 5))
    torch.testing.assert_close(path[:, 0], a)
    torch.testing.assert_close(path[:, -1], b)
    lengths = path.norm(dim=2)
    assert (lengths >= torch.minimum(a.norm(dim=1), b.norm(dim=1))[:, None] * 0.99).all()
    steps = (path[:, 1:] - path[:, :-1]).norm(dim=2)
    assert (steps.max(1).values < 1.2 * steps.min(1).values).all()
    torch.testing.assert_close(interpolated(a, a, 3), a.repeat_interleave(3, 0))  # nowhere to go


@pytest.mark.parametrize("method", ["truncated-normal", "scaled-normal", "scaled-truncated-normal"])
@pytest.mark.parametrize("t", [0.1, 1.0, 2.5])
def test_distribution_functions(method: Truncation, t: float) -> None:
    """Kolmogorov-Smirnov: 1.95 / sqrt(n) is passed once in a thousand times, and these numbers are always the same."""
    z = latents(0, RandomStream.SAMPLES, 0, 25_000, 4, t, method).double().flatten().sort().values
    bound, scale = {"truncated-normal": (t, 1.0), "scaled-normal": (np.inf, t), "scaled-truncated-normal": (2.0, t)}[method]
    low = torch.special.ndtr(torch.tensor(-bound, dtype=torch.float64))
    wanted = (torch.special.ndtr(z / scale) - low) / (1 - 2 * low)
    have = torch.arange(len(z)) / len(z)
    assert (have - wanted).abs().max() < 1.95 / len(z) ** 0.5


def test_the_topmost_word_is_below_1(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        def __init__(self, key: object, counter: int):
            pass

        def random_raw(self, n: int) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
            return np.full(n, 2**64 - 1, np.uint64)

    monkeypatch.setattr(np.random, "Philox", Full)
    assert uniforms(0, RandomStream.AUGMENT_D, 0, 1, 4).max() < 1
    assert latents(0, RandomStream.SAMPLES, 0, 1, 4).isfinite().all()
    assert random_labels(0, RandomStream.SAMPLES, 0, 1, 10).item() == 9
