"""What an extractor is shown and in which order, on one rank and on several; accuracies against counting; what is kept."""

import hashlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor

from model.biggan import Generator
from model.config import ModelConfig
from model.sampling import generate
from pipeline import storage
from pipeline.data.loader import DataConfig
from pipeline.data.manifest import load_manifest
from pipeline.errors import ConfigError, DataError
from pipeline.evaluation import reference_cache
from pipeline.evaluation.classifier import Classifier
from pipeline.evaluation.measure import DrawnSamples, Judged, Real, extract, measure, too_few
from pipeline.evaluation.networks import Extractor, from_judge
from pipeline.evaluation.worker_pool import WorkerPool, together
from pipeline.generation.load import ema_generator

CLASSES = "abcd"


pytestmark = pytest.mark.usefixtures("one_thread")


@dataclass(frozen=True)
class Given:
    """Images of a test."""

    images: Tensor
    labels: Tensor

    @property
    def count(self) -> int:
        return len(self.images)

    def batches(self, start: int, end: int, batch: int, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
        yield from zip(self.images[start:end].split(batch), self.labels[start:end].split(batch), strict=True)


def extractor(resolution: int = 32, channels: int = 3) -> Extractor:
    """An untrained judge of 4 classes."""
    torch.manual_seed(0)
    return from_judge("clf", "00", Classifier(resolution, channels, 4))


def generator() -> Generator:
    torch.manual_seed(0)
    config = ModelConfig(resolution=32, num_classes=4, channels=3, ch=2, shared_dim=8)
    return ema_generator(config, dict(Generator(config).state_dict()), {}, torch.device("cpu"), samples=16)


def real(uri: Path, count: int) -> Real:
    return Real(DataConfig(uri=str(uri)), load_manifest(str(uri)), count)


def judged(n: int, seed: int = 0) -> Judged:
    features = torch.randn(n, 4, generator=torch.Generator().manual_seed(seed))
    return Judged(features, torch.arange(n) % 4, torch.arange(n) % 4)


def test_accuracy_by_class() -> None:
    found = Judged(torch.zeros(6, 2), torch.tensor([0, 0, 0, 1, 1, 3]), torch.tensor([0, 0, 1, 1, 1, 0]))
    assert found.accuracy == pytest.approx(4 / 6)
    assert found.class_accuracy(CLASSES) == pytest.approx({"a": 2 / 3, "b": 1.0, "d": 0.0})  # nothing is said of c


def test_judge_keeps_order_and_agrees_with_the_classifier() -> None:
    torch.manual_seed(0)
    classifier = Classifier(16, 1, 3).eval()
    given = Given(torch.randint(0, 256, (10, 1, 16, 16), dtype=torch.uint8), torch.arange(10) % 3)
    found = extract(WorkerPool(), from_judge("clf", "00", classifier), given, 4)
    with torch.no_grad():
        assert torch.allclose(found.features, classifier.features(given.images), atol=1e-6)
        assert found.predictions.tolist() == classifier(given.images).argmax(1).tolist()
    assert found.labels.tolist() == given.labels.tolist() and found.features.shape == (10, 64)
    assert found.features.dtype == torch.float32 and found.score is None


def test_samples_are_those_of_the_seed_with_classes_in_turn() -> None:
    network, device = generator(), torch.device("cpu")
    samples = DrawnSamples(generator=network, num_classes=4, count=53, seed=1)
    images, labels = (torch.cat(parts) for parts in zip(*samples.batches(0, 53, 16, device), strict=True))
    assert labels.tolist() == [i % 4 for i in range(53)] and images.dtype == torch.uint8
    assert torch.equal(images, generate(network, labels, seed=1, batch=16))
    behind, _ = next(samples.batches(16, 53, 16, device))
    assert torch.equal(behind, images[16:32])
    for other in (replace(samples, seed=2), replace(samples, truncation=0.5)):
        assert not torch.equal(images[:16], next(other.batches(0, 16, 16, device))[0])


def test_real_images_from_a_position_on(shards: Path) -> None:
    images = real(shards, 250)
    whole = list(images.batches(0, 250, 64, torch.device("cpu")))
    part = list(images.batches(128, 250, 64, torch.device("cpu")))
    assert [len(labels) for _, labels in whole] == [64, 64, 64, 58]
    for (pixels, labels), (same, same_labels) in zip(whole[2:], part, strict=True):
        assert torch.equal(pixels, same) and torch.equal(labels, same_labels)


@pytest.mark.parametrize(("count", "batch", "ranks"), [(10, 3, 2), (10, 3, 7), (1000, 64, 3), (5, 64, 2)])
def test_ranks_share_whole_batches(count: int, batch: int, ranks: int) -> None:
    shares = [WorkerPool(rank, ranks).share(count, batch) for rank in range(ranks)]
    assert [start for start, _ in shares] == [0, *(end for _, end in shares[:-1])] and shares[-1][1] == count
    assert all(start % batch == 0 or start == count for start, _ in shares)


@pytest.mark.slow
def test_several_processes_see_what_one_sees(shards: Path, tmp_path: Path) -> None:
    cut = shutil.copytree(shards, tmp_path / "cut")
    for tar in cut.glob("*.tar"):
        tar.write_bytes(tar.read_bytes()[: tar.stat().st_size // 2])
    network, sets = extractor(), [real(shards, 250), DrawnSamples(generator=generator(), num_classes=4, count=300, seed=0)]
    alone = [extract(WorkerPool(), network, images, 64) for images in sets]
    with together(3) as peers:
        shared = [extract(peers, network, images, 64) for images in sets]
        with pytest.raises(DataError):
            extract(peers, network, real(cut, 250), 64)
        again = extract(peers, network, sets[0], 64)  # a failure that was told leaves them together
    assert torch.equal(again.features, shared[0].features)
    for one, many in zip(alone, shared, strict=True):
        assert torch.equal(one.labels, many.labels) and torch.equal(one.features, many.features)
    values = [measure("x", *pair, ["prdc", "intra-fid"], CLASSES, torch.device("cpu")).values for pair in (alone, shared)]
    assert values[0] == pytest.approx(values[1], rel=1e-9) and len(values[0]) == 6


@pytest.mark.long
def test_figures_carry_their_extractor() -> None:
    found = measure("clf", judged(1200), judged(1200, 1), ("kid", "prdc", "intra-fid"), CLASSES, torch.device("cpu"))
    names = ("FID", "KID", "precision", "recall", "density", "coverage", "intra-FID")
    assert list(found.values) == [f"{name}[clf]" for name in names]
    assert list(found.spread) == ["KID[clf]"] and list(found.by_class) == list(CLASSES)
    assert found.values["intra-FID[clf]"] == pytest.approx(sum(found.by_class.values()) / 4)


@pytest.mark.parametrize(
    ("name", "enough", "words"),
    [
        ("is", 1000, "is needs 1,000 images, the samples are 999"),
        ("kid", 1000, "kid needs 1,000 images, the samples are 999"),
        ("prdc", 6, "prdc needs 6 images, the samples are 5"),
        ("intra-fid", 200, "intra-fid needs 50 images of each class, the samples have 49 of d"),
    ],
)
def test_too_few_images(name: str, enough: int, words: str) -> None:
    labels = torch.arange(enough) % 4
    assert too_few(name, {"the samples": labels}, CLASSES) is None
    assert too_few(name, {"real ones": labels, "the samples": labels[:-1]}, CLASSES) == words


class Counted:
    """Computes, and counts how often."""

    def __init__(self, result: Judged) -> None:
        self.result, self.calls = result, 0

    def __call__(self) -> Judged:
        self.calls += 1
        return self.result


def test_what_is_said_of_real_images_is_kept_beside_them_by_its_whole_recipe(shards: Path, tmp_path: Path) -> None:
    uri, cache = (
        shutil.copytree(shards, tmp_path / "shards", ignore=shutil.ignore_patterns("evaluation")),
        str(tmp_path / "cache"),
    )
    said: list[str] = []
    network, images = extractor(), real(uri, 250)
    compute = Counted(replace(judged(250), score=(1.5, 0.25)))
    made = reference_cache.obtain(network, images, cache, compute, said.append)
    assert compute.calls == 1 and len(list((uri / reference_cache.FOLDER).iterdir())) == 2 and not Path(cache).exists()
    known = reference_cache.obtain(network, images, cache, compute, said.append)
    assert compute.calls == 1 and len(said) == 1 and known.score == (1.5, 0.25)
    assert torch.equal(made.features, known.features) and torch.equal(known.labels, compute.result.labels)
    # A judge's features are its weights', whatever it is called.
    reference_cache.obtain(replace(network, name="other"), images, cache, compute, said.append)
    assert compute.calls == 1
    others = (
        (replace(network, sha256="01"), images),
        (replace(network, resizer="clean-224"), images),
        (replace(network, judge=False), images),
        (network, real(uri, 249)),
        (network, replace(images, config=DataConfig(uri=str(uri), crop=32))),
        (network, replace(images, config=DataConfig(uri=str(uri), resolution=16))),
        (network, replace(images, manifest=replace(images.manifest, classes=tuple("wxyz")))),
    )
    for calls, (one, of) in enumerate(others, 2):
        reference_cache.obtain(one, of, cache, compute, said.append)
        assert compute.calls == calls


def test_what_is_kept_and_damaged_is_named(shards: Path, tmp_path: Path) -> None:
    uri = shutil.copytree(shards, tmp_path / "shards")
    images, compute = real(uri, 250), Counted(judged(250))
    reference_cache.obtain(extractor(), images, str(tmp_path), compute, str)
    (place,), (notes,) = ((uri / reference_cache.FOLDER).glob(f"*.{kind}") for kind in ("safetensors", "json"))
    place.write_bytes(place.read_bytes()[:-1])
    with pytest.raises(DataError, match="is damaged: delete it"):
        reference_cache.obtain(extractor(), images, str(tmp_path), compute, str)
    known = json.loads(notes.read_text())
    for data, reason in (
        (b"\xff" * 99, "is damaged: SafetensorError"),
        (safetensors.torch.save({"features": torch.ones(2, 3)}), "is damaged: KeyError"),
        (safetensors.torch.save({name: torch.ones(2) for name in ("features", "labels", "predictions")}), "does not hold"),
    ):
        place.write_bytes(data)
        notes.write_text(json.dumps(known | {"sha256": hashlib.sha256(data).hexdigest()}))
        with pytest.raises(DataError, match=reason):
            reference_cache.obtain(extractor(), images, str(tmp_path), compute, str)
    for text in ("[" * 3000, "{}", json.dumps(known | {"inception_score": ["high"]})):
        notes.write_text(text)
        with pytest.raises(DataError, match=rf"{notes.name}: "):
            reference_cache.obtain(extractor(), images, str(tmp_path), compute, str)


def test_shards_that_may_not_be_written_leave_it_in_the_cache(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri, cache, said = shutil.copytree(shards, tmp_path / "shards"), tmp_path / "cache", []
    shutil.rmtree(uri / reference_cache.FOLDER, ignore_errors=True)
    write = storage.write_bytes

    def refuse(place: str, data: bytes) -> None:
        if place.startswith(str(uri)):
            raise ConfigError(f"cannot write {place}: Read-only file system")
        write(place, data)

    monkeypatch.setattr(storage, "write_bytes", refuse)
    images, compute = real(uri, 250), Counted(judged(250))
    for _ in range(2):
        reference_cache.obtain(extractor(), images, str(cache), compute, said.append)
    assert compute.calls == 1 and len(list(cache.iterdir())) == 2
    assert any("Read-only file system" in line and str(cache) in line for line in said)
    with pytest.raises(ConfigError, match="Read-only"):
        reference_cache.obtain(
            replace(extractor(), sha256="01"), images, str(uri / reference_cache.FOLDER), compute, said.append
        )
    assert not (uri / reference_cache.FOLDER).exists()
