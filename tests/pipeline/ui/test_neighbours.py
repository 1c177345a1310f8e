import shutil
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from model.config import ModelConfig
from pipeline.data.loader import DataConfig, load_all
from pipeline.data.manifest import load_manifest
from pipeline.errors import ConfigError, DataError
from pipeline.ui.neighbours import Neighbours

COLOUR = ModelConfig(resolution=32, num_classes=4)


def index(uri: Path, limit: int, config: ModelConfig = COLOUR, **options: float) -> Neighbours:
    return Neighbours(DataConfig(uri=str(uri), **options), load_manifest(str(uri)), config, limit)  # type: ignore[arg-type]


def wait(neighbours: Neighbours) -> Neighbours:
    deadline = time.monotonic() + 60
    while not neighbours.ready():
        assert time.monotonic() < deadline and 0 <= neighbours.done <= neighbours.total
        time.sleep(0.01)
    return neighbours


def everything(uri: Path) -> tuple[torch.Tensor, torch.Tensor]:
    return load_all(DataConfig(uri=str(uri)), load_manifest(str(uri)))


def test_nothing_is_read_before_somebody_asks(shards: Path) -> None:
    neighbours = index(shards, 100)
    assert (neighbours.done, neighbours.total, neighbours.samples) == (0, 100, 256)
    neighbours.close()


def test_of_all_images_the_nearest_ones_as_plain_numpy_finds_them(shards: Path) -> None:
    images, labels = everything(shards)
    neighbours = wait(index(shards, 10_000))
    assert neighbours.done == neighbours.count == neighbours.total == 256
    for image in (images[17], torch.randint(256, (3, 32, 32), generator=torch.Generator().manual_seed(0)).to(torch.uint8)):
        apart = np.sqrt(((images.numpy().astype(float) - image.numpy()) ** 2).mean((1, 2, 3)))
        order = apart.argsort()[:8]
        found = neighbours.nearest(image, 8)
        assert [neighbour.distance for neighbour in found] == pytest.approx(apart[order].tolist(), abs=1e-3)
        assert [neighbour.label for neighbour in found] == labels[order].tolist()
        assert all(torch.equal(neighbour.image, images[i]) for neighbour, i in zip(found, order, strict=True))
    assert neighbours.nearest(images[17], 1)[0].distance == 0


def test_some_images_are_drawn_from_all_classes_and_each_is_there_once(shards: Path) -> None:
    known = {image.numpy().tobytes() for image in everything(shards)[0]}
    neighbours = wait(index(shards, 100))
    found = neighbours.nearest(torch.zeros(3, 32, 32, dtype=torch.uint8), 1000)
    pixels = {neighbour.image.contiguous().numpy().tobytes() for neighbour in found}
    assert len(found) == len(pixels) == 100 and pixels <= known
    assert {neighbour.label for neighbour in found} == {0, 1, 2, 3}


def test_images_of_another_size_are_compared_at_the_models(shards: Path) -> None:
    neighbours = wait(index(shards, 64, replace(COLOUR, resolution=128)))
    (nearest,) = neighbours.nearest(torch.zeros(3, 128, 128, dtype=torch.uint8), 1)
    assert neighbours.side == 32 and nearest.image.shape == (3, 64, 64)


def test_channels_that_do_not_fit(shards_grey: Path) -> None:
    with pytest.raises(ConfigError, match="has images of 1 channels, and the model draws 3"):
        index(shards_grey, 10)


def test_a_damaged_image_is_left_out_and_too_many_are_an_error_until_they_are_mended(shards: Path, tmp_path: Path) -> None:
    copy = tmp_path / "shards"
    shutil.copytree(shards, copy)
    tar = copy / "000000.tar"
    whole = tar.read_bytes()
    place = whole.index(b"IDAT") + 20
    tar.write_bytes(whole[:place] + bytes([whole[place] ^ 255]) + whole[place + 1 :])
    assert wait(index(copy, 10_000, bad_fraction=0.1)).count == 255
    strict = index(copy, 10_000, bad_fraction=0)
    with pytest.raises(DataError, match="000000"):
        wait(strict)
    tar.write_bytes(whole)
    assert wait(strict).count == 256
