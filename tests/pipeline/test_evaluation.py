"""The Fréchet distance against scipy's matrix root and against closed forms; accuracies against counting."""

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.biggan import Generator
from model.config import ModelConfig
from model.sampling import generate
from pipeline.classifier import Classifier
from pipeline.evaluation import Floats, Judged, frechet_distance, judge, sample_batches
from pipeline.generators import ema_generator


def gaussian(seed: int, n: int, d: int) -> Floats:
    """Correlated, well conditioned."""
    rng = np.random.default_rng(seed)
    mixing = np.eye(d) + 0.3 * rng.normal(size=(d, d)) / np.sqrt(d)
    return rng.normal(size=(n, d)) @ mixing + rng.normal(size=d)


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 1000), st.sampled_from([2, 8, 64]))
def test_frechet_distance_is_that_of_the_definition(seed: int, d: int) -> None:
    a, b = gaussian(seed, 500, d), gaussian(seed + 1, 300, d)
    s, t = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    expected = np.square(a.mean(0) - b.mean(0)).sum() + np.trace(s + t - 2 * scipy.linalg.sqrtm(s @ t).real)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(b, a) == pytest.approx(expected, rel=1e-9)


def test_frechet_distance_of_a_set_to_itself_and_to_its_shift() -> None:
    a = gaussian(0, 1000, 64)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(a, a + 0.5) == pytest.approx(64 * 0.25, rel=1e-9)
    assert frechet_distance(a, 3 * a - 2 * a.mean(0)) == pytest.approx(4 * np.trace(np.cov(a, rowvar=False)), rel=1e-9)


def test_frechet_distance_with_singular_covariances() -> None:
    a = gaussian(0, 1000, 32) * (np.arange(32) < 20)  # features that never fire, as after a ReLU
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)
    few = gaussian(1, 10, 32)
    # 22 eigenvalues that should be 0 are of the order of 1e-16, their roots of 1e-8.
    assert frechet_distance(few, few + 1) == pytest.approx(32, rel=1e-6)


@pytest.mark.parametrize("bad", [np.full((10, 4), np.nan), np.zeros((1, 4))])
def test_frechet_distance_refuses_what_has_none(bad: Floats) -> None:
    with pytest.raises(ValueError, match="finite, 2 rows"):
        frechet_distance(gaussian(0, 10, 4), bad)


def test_accuracy_by_class() -> None:
    judged = Judged(np.zeros((6, 2)), np.array([0, 0, 0, 1, 1, 3]), np.array([0, 0, 1, 1, 1, 0]))
    assert judged.accuracy == pytest.approx(4 / 6)
    assert judged.class_accuracy("abcd") == pytest.approx({"a": 2 / 3, "b": 1.0, "d": 0.0})  # nothing is said of c


def test_judge_keeps_order_and_agrees_with_the_classifier() -> None:
    torch.manual_seed(0)
    classifier = Classifier(16, 1, 3).eval()
    images = torch.randint(0, 256, (10, 1, 16, 16), dtype=torch.uint8)
    labels = torch.arange(10) % 3
    judged = judge(classifier, zip(images.split(4), labels.split(4), strict=True))
    with torch.no_grad():
        assert torch.allclose(torch.from_numpy(judged.features), classifier.features(images).double(), atol=1e-6)
        assert judged.predictions.tolist() == classifier(images).argmax(1).tolist()
    assert judged.labels.tolist() == labels.tolist() and judged.features.shape == (10, 64)
    with pytest.raises(ValueError, match="no images"):
        judge(classifier, [])


def test_samples_are_those_of_the_seed_with_classes_in_turn() -> None:
    torch.manual_seed(0)
    config = ModelConfig(resolution=32, num_classes=3, channels=1, ch=2, shared_dim=8)
    generator = ema_generator(config, dict(Generator(config).state_dict()), {}, torch.device("cpu"), samples=16)
    batches = list(sample_batches(generator, 3, 503, seed=1, truncation=None))
    images, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    assert labels.tolist() == [i % 3 for i in range(503)]
    assert torch.equal(images, generate(generator, labels, seed=1))
    assert not torch.equal(images[:9], next(sample_batches(generator, 3, 9, seed=2, truncation=None))[0])
    assert not torch.equal(images[:9], next(sample_batches(generator, 3, 9, seed=1, truncation=0.5))[0])
