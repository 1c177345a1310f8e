"""The judge learns, is the same every time, and is trained once."""

import dataclasses
import hashlib
import json
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch

from pipeline.data.loader import DataConfig, load_all
from pipeline.data.manifest import load_manifest
from pipeline.errors import ConfigError, DataError
from pipeline.evaluation.classifier import FEATURES, VARIANCE, Classifier, Recipe, obtain_judge, real_batches, train_classifier
from pipeline.evaluation.metrics import frechet_distance

QUICK = Recipe(epochs=1, min_steps=24, batch=32)
INSTANT = Recipe(epochs=0, min_steps=2, batch=32)


def silent(line: str) -> None:
    """Where messages go."""


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(("resolution", "channels"), [(16, 1), (32, 3), (128, 3)])
def test_shapes(resolution: int, channels: int) -> None:
    classifier = Classifier(resolution, channels, 7)
    images = torch.randint(0, 256, (2, channels, resolution, resolution), dtype=torch.uint8)
    assert classifier(images).shape == (2, 7)
    assert classifier.features(images).shape == (2, FEATURES) and classifier.features(images).dtype == torch.float32


@pytest.mark.parametrize("resolution", [8, 48])
def test_a_resolution_that_cannot_be_halved(resolution: int) -> None:
    with pytest.raises(ValueError, match="power of two"):
        Classifier(resolution, 1, 2)


@pytest.mark.long
@pytest.mark.parametrize("split", ["shards", "shards_grey"])
def test_it_learns_and_real_images_are_near_real_images(split: str, request: pytest.FixtureRequest) -> None:
    config = DataConfig(uri=str(request.getfixturevalue(split)))
    manifest = load_manifest(config.uri)
    classifier = train_classifier(config, manifest, QUICK, silent)
    images, labels = load_all(config, manifest)
    with torch.no_grad():
        features, wrong = classifier.features(images), classifier.features(255 - images)
        assert (classifier.head(features).argmax(1) == labels).float().mean() > 0.95
    assert frechet_distance(features[::2], features[1::2]) < 0.2 * frechet_distance(features, wrong)


@pytest.mark.long
def test_training_is_the_same_every_time_and_leaves_the_global_generator_alone(shards_grey: Path) -> None:
    config, manifest = DataConfig(uri=str(shards_grey)), load_manifest(str(shards_grey))
    recipe = dataclasses.replace(INSTANT, min_steps=5)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = train_classifier(config, manifest, recipe, silent).state_dict()
    assert torch.equal(before, torch.get_rng_state())
    again = train_classifier(config, manifest, recipe, silent).state_dict()
    other = train_classifier(config, manifest, dataclasses.replace(recipe, seed=1), silent).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["head.weight"], other["head.weight"])


def test_a_pass_holds_each_image_once(shards: Path) -> None:
    config, manifest = DataConfig(uri=str(shards)), load_manifest(str(shards))
    images, labels = load_all(config, manifest)
    batches = list(real_batches(config, manifest, manifest.samples, 100))
    assert [len(part) for part, _ in batches] == [100, 100, 56]
    seen = torch.cat([part for part, _ in batches])
    assert sorted(map(bytes, seen.flatten(1).numpy())) == sorted(map(bytes, images.flatten(1).numpy()))
    assert torch.cat([part for _, part in batches]).bincount().tolist() == labels.bincount().tolist()


@pytest.mark.long
def test_it_is_trained_once_per_recipe(shards_grey: Path, tmp_path: Path) -> None:
    config, manifest, said = DataConfig(uri=str(shards_grey)), load_manifest(str(shards_grey)), []
    recipe, cache = INSTANT, str(tmp_path / "cache")
    made = obtain_judge(config, manifest, cache, said.append, recipe)
    assert len(said) == 1 and "training the judge on 256 images" in said[0]
    known = obtain_judge(config, manifest, cache, said.append, recipe)
    assert len(said) == 1 and (known.key, known.seconds) == (made.key, made.seconds)
    a, b = made.classifier.state_dict(), known.classifier.state_dict()
    assert all(torch.equal(a[name], b[name]) for name in a) and not known.classifier.training
    other = obtain_judge(config, manifest, cache, said.append, dataclasses.replace(recipe, seed=1))
    assert len(said) == 2 and other.key != made.key
    notes = json.loads(Path(made.place).with_suffix(".json").read_text())
    assert notes["fingerprint"] == manifest.fingerprint and notes["recipe"]["min_steps"] == 2


@pytest.mark.long
def test_a_damaged_judge_is_named_and_half_a_one_is_made_anew(shards_grey: Path, tmp_path: Path) -> None:
    config, manifest, said = DataConfig(uri=str(shards_grey)), load_manifest(str(shards_grey)), []
    recipe = INSTANT
    place = Path(obtain_judge(config, manifest, str(tmp_path), said.append, recipe).place)
    whole = place.read_bytes()
    place.write_bytes(whole[:-1])
    with pytest.raises(DataError, match="damaged: delete it"):
        obtain_judge(config, manifest, str(tmp_path), said.append, recipe)
    notes = place.with_suffix(".json")
    known = json.loads(notes.read_text())
    for data, reason in (
        (b"\xff" * 99, "is damaged: SafetensorError"),
        (safetensors.torch.save({}), "does not fit the network"),
    ):
        place.write_bytes(data)
        notes.write_text(json.dumps(known | {"sha256": hashlib.sha256(data).hexdigest()}))
        with pytest.raises(DataError, match=reason):
            obtain_judge(config, manifest, str(tmp_path), said.append, recipe)
    for text in ("[" * 3000, "{}", json.dumps(known | {"seconds": "many"})):
        notes.write_text(text)
        with pytest.raises(DataError, match=rf"{notes.name}: "):
            obtain_judge(config, manifest, str(tmp_path), said.append, recipe)
    place.with_suffix(".json").unlink()  # what a kill between the two writes leaves
    obtain_judge(config, manifest, str(tmp_path), said.append, recipe)
    assert len(said) == 2 and place.read_bytes() == whole


def test_shards_without_anything_to_tell_apart(shards_grey: Path, tmp_path: Path) -> None:
    manifest = dataclasses.replace(load_manifest(str(shards_grey)), classes=("one",), class_counts=(256,))
    with pytest.raises(ConfigError, match=r"--train .* has 1 class"):
        obtain_judge(DataConfig(uri=str(shards_grey)), manifest, str(tmp_path), silent)
    assert not list(tmp_path.iterdir())


def test_cut_shards_end_the_training(shards_grey: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut"
    shutil.copytree(shards_grey, cut)
    tar = next(cut.glob("*.tar"))
    tar.write_bytes(tar.read_bytes()[: tar.stat().st_size // 2])
    with pytest.raises(DataError):
        train_classifier(DataConfig(uri=str(cut)), load_manifest(str(cut)), QUICK, silent)


@pytest.mark.long
def test_the_scale_of_features_is_fixed_and_changes_no_answer(shards_grey: Path) -> None:
    config, manifest = DataConfig(uri=str(shards_grey)), load_manifest(str(shards_grey))
    images, _ = load_all(config, manifest)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.evaluation.classifier._scale_features", lambda *_: None)
        plain = train_classifier(config, manifest, INSTANT, silent)
    scaled = train_classifier(config, manifest, INSTANT, silent)
    with torch.no_grad():
        assert scaled.features(images).double().var(0).sum() == pytest.approx(VARIANCE, rel=1e-4)
        torch.testing.assert_close(scaled(images), plain(images), rtol=1e-3, atol=1e-4)


def test_a_judge_sees_its_images_in_an_order_of_its_own(shards: Path) -> None:
    """Whatever lanes a training has, or has by default: a judge that was kept is still the one that would be made."""
    manifest = load_manifest(str(shards))
    ours, others = (real_batches(DataConfig(uri=str(shards), lanes=lanes), manifest, 64, 32) for lanes in (64, 3))
    for (images, labels), (same_images, same_labels) in zip(ours, others, strict=True):
        assert torch.equal(images, same_images) and torch.equal(labels, same_labels)
