"""Figures against their definitions (scipy, plain loops), closed forms and torch-fidelity."""

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist
from torch import Tensor

from pipeline.evaluation import metrics
from pipeline.evaluation.metrics import (
    frechet_distance,
    inception_score,
    intra_frechet,
    kernel_distance,
    manifolds,
    moments,
    squared_mmd,
)
from tests.support.fidelity import fidelity

pytestmark = pytest.mark.usefixtures("one_thread")


def gaussian(seed: int, n: int, d: int) -> Tensor:
    """Correlated, well conditioned."""
    rng = np.random.default_rng(seed)
    mixing = np.eye(d) + 0.3 * rng.normal(size=(d, d)) / np.sqrt(d)
    return torch.from_numpy(rng.normal(size=(n, d)) @ mixing + rng.normal(size=d))


def by_definition(a: Tensor, b: Tensor) -> float:
    x, y = a.double().numpy(), b.double().numpy()
    s, t = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    return float(np.square(x.mean(0) - y.mean(0)).sum() + np.trace(s + t - 2 * scipy.linalg.sqrtm(s @ t).real))


@settings(max_examples=20)
@given(st.integers(0, 1000), st.sampled_from([2, 8, 64]))
def test_frechet_distance_is_that_of_the_definition(seed: int, d: int) -> None:
    a, b = gaussian(seed, 500, d), gaussian(seed + 1, 300, d)
    expected = by_definition(a, b)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(b, a) == pytest.approx(expected, rel=1e-9)


def test_frechet_distance_of_fp32_features_as_an_extractor_gives_them() -> None:
    a, b = (gaussian(seed, 10 * 256, 256).float() * 3 + 10 for seed in (0, 1))
    expected = by_definition(a, b)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)
    stats = [fidelity("metric_fid").fid_features_to_statistics(x.double()) for x in (a, b)]
    theirs = fidelity("metric_fid").fid_statistics_to_metric(*stats, False)["frechet_inception_distance"]
    assert frechet_distance(a, b) == pytest.approx(theirs, rel=1e-6)


def test_frechet_distance_of_a_set_to_itself_and_to_its_shift() -> None:
    a = gaussian(0, 1000, 64)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(a, a + 0.5) == pytest.approx(64 * 0.25, rel=1e-9)
    trace = moments(a).covariance.trace()
    assert frechet_distance(a, 3 * a - 2 * a.mean(0)) == pytest.approx(4 * float(trace), rel=1e-9)


def test_frechet_distance_with_singular_covariances() -> None:
    a = gaussian(0, 1000, 32) * (torch.arange(32) < 20)  # features that never fire, as after a ReLU
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)
    few = gaussian(1, 10, 32)
    assert frechet_distance(few, few + 1) == pytest.approx(32, rel=1e-9)


def test_both_ways_to_a_frechet_distance_agree() -> None:
    """With fewer images than features, and with more."""
    a, b = gaussian(0, 70, 64), gaussian(1, 90, 64)
    assert metrics._frechet_of_few(a, b) == pytest.approx(frechet_distance(a, b), rel=1e-9)


@pytest.mark.parametrize("bad", [torch.full((10, 4), torch.nan), torch.zeros(1, 4), torch.full((2, 4), torch.inf)])
def test_no_figure_of_what_has_none(bad: Tensor) -> None:
    for figure in (frechet_distance, kernel_distance, manifolds):
        with pytest.raises(ValueError, match="finite, 2 rows"):
            figure(gaussian(0, 10, 4), bad)
    with pytest.raises(ValueError, match="finite, 2 rows"):
        inception_score(bad)


def test_moments_in_blocks_are_those_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "_BLOCK", 7)
    a = gaussian(0, 100, 5)
    found = moments(a)
    np.testing.assert_allclose(found.mean, a.mean(0), rtol=1e-12)
    np.testing.assert_allclose(found.covariance, np.cov(a, rowvar=False), rtol=1e-12)


def test_intra_frechet_is_taken_within_classes() -> None:
    a, b = gaussian(0, 300, 4), gaussian(1, 300, 4)
    labels, others = torch.arange(300) % 3, torch.arange(300) // 100
    found = intra_frechet(a, labels, b, others)
    assert found == {i: frechet_distance(a[i::3], b[100 * i : 100 * i + 100]) for i in range(3)}
    # Classes that are swapped leave the whole as it is, and are far from what they should be.
    shifted = a + 50 * (labels == 0)[:, None]
    swapped = (labels + 1) % 3
    assert intra_frechet(shifted, labels, shifted, swapped)[0] > 1000


def test_inception_score_of_certain_and_of_undecided_classifiers() -> None:
    certain = 1000 * torch.nn.functional.one_hot(torch.arange(4000) % 4, 4).float()
    assert inception_score(certain) == pytest.approx((4, 0), abs=1e-9)
    assert inception_score(torch.zeros(1000, 4)) == pytest.approx((1, 0), abs=1e-9)


def test_inception_score_is_torch_fidelitys() -> None:
    logits = 3 * gaussian(0, 1000, 12).float()
    theirs = fidelity("metric_isc").isc_features_to_metric(logits, splits=10, shuffle=False)
    assert inception_score(logits) == pytest.approx(tuple(theirs.values()), rel=1e-9)


def test_squared_mmd_is_torch_fidelitys_and_that_of_the_definition() -> None:
    a, b = gaussian(0, 60, 8), gaussian(1, 60, 8)
    kernel = [(u.numpy() @ v.numpy().T / 8 + 1) ** 3 for u, v in ((a, a), (b, b), (a, b))]
    expected = sum((k.sum() - np.trace(k)) / (60 * 59) for k in kernel[:2]) - 2 * kernel[2].mean()
    assert squared_mmd(a, b) == pytest.approx(expected, rel=1e-9)
    options = {"kid_subsets": 1, "kid_subset_size": 60, "verbose": False}
    theirs = fidelity("metric_kid").kid_features_to_metric(a, b, **options)["kernel_inception_distance_mean"]
    assert squared_mmd(a, b) == pytest.approx(theirs, rel=1e-9)


def test_kernel_distance_pools_subsets_and_belongs_to_its_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "KID_SUBSET", 50)
    a, b = gaussian(0, 600, 8).split([200, 400])
    mean, spread = kernel_distance(a, b)
    assert (mean, spread) == kernel_distance(a, b) != kernel_distance(a, b, seed=1)
    assert abs(mean) < 3 * spread and spread > 0  # it has no bias: it may be below 0
    assert kernel_distance(a, b + 1)[0] > 10 * spread


def brute(real: Tensor, fake: Tensor) -> list[float]:
    """Precision, recall, density, coverage from all distances, by the definitions."""
    r, f = real.double().numpy(), fake.double().numpy()
    across = cdist(r, f)
    radii = {k: [np.sort(cdist(x, x), 1)[:, k] for x in (r, f)] for k in (3, 5)}
    precision = (across <= radii[3][0][:, None]).any(0).mean()
    recall = (across <= radii[3][1]).any(1).mean()
    inside = across < radii[5][0][:, None]
    return [precision, recall, inside.sum(0).mean() / 5, inside.any(1).mean()]


@settings(max_examples=10)
@given(st.integers(0, 1000), st.floats(0.0, 2.0), st.integers(6, 90), st.integers(6, 90))
def test_manifolds_are_those_of_the_definition(seed: int, shift: float, n: int, m: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "_BLOCK", 16)  # several blocks of rows and of columns
        real, fake = gaussian(seed, n, 3), gaussian(seed + 1, m, 3) + shift
        assert list(vars(manifolds(real, fake)).values()) == pytest.approx(brute(real, fake), rel=1e-9)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("copies", [2, 4, 6, 9])
def test_copies_of_rows_are_at_distance_0(copies: int, scale: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """A generator that has learnt images by heart, and one that draws few: with 4 and 6 copies a radius is 0."""
    monkeypatch.setattr(metrics, "_BLOCK", 16)
    real = scale * (gaussian(copies, 12, 24) + 30).repeat(copies, 1)
    others = scale * (gaussian(99, 8, 24) + 30).repeat(copies, 1)
    for fake in (real[: 5 * copies], others, torch.cat((real[:7], real[3:9] * 1.01))):
        assert list(vars(manifolds(real, fake)).values()) == pytest.approx(brute(real, fake), rel=1e-9)
    third, fifth = metrics.radii(real)
    assert bool((third == 0).all()) is (copies >= 4) and bool((fifth == 0).all()) is (copies >= 6)


def test_precision_and_recall_are_torch_fidelitys() -> None:
    real, fake = gaussian(0, 500, 16).float(), gaussian(1, 400, 16).float()
    theirs = fidelity("metric_prc").prc_features_to_metric(fake, real, verbose=False)
    found = manifolds(real, fake)
    assert (found.precision, found.recall) == pytest.approx((theirs["precision"], theirs["recall"]), rel=1e-6)


def test_manifolds_of_a_set_far_away_and_of_one_that_is_the_same() -> None:
    real = gaussian(0, 100, 8)
    assert list(vars(manifolds(real, real + 1000)).values()) == [0, 0, 0, 0]
    same = manifolds(real, real)
    assert (same.precision, same.recall, same.coverage) == (1, 1, 1)
    # 5 balls around each on average: that of the row itself, and of those that have it among their 4 nearest.
    assert same.density == pytest.approx(1)
