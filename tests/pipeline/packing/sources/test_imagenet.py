from pathlib import Path

import pytest

from pipeline.errors import ConfigError, DataError
from pipeline.packing.pack import PackConfig, pack
from pipeline.packing.sources.base import Source
from pipeline.packing.sources.detect import open_source
from pipeline.packing.sources.imagenet import DEVKIT, TRAIN, VAL
from tests.support.datasets.imagenet import IDS, NAMES, TRUTH, jpeg, tar_with, write_imagenet


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_imagenet(tmp_path / "imagenet")
    return tmp_path / "imagenet"


def opened(place: Path) -> dict[str, Source]:
    return {source.split: source for source in open_source(str(place), lambda _: None)}


def test_labels_are_the_places_of_the_sorted_ids_in_both_splits(tmp_path: Path) -> None:
    images = write_imagenet(tmp_path)
    sources = opened(tmp_path)
    assert list(sources) == ["train", "val"]
    assert sources["train"].classes == sources["val"].classes == NAMES
    for split, source in sources.items():
        files = {name.split(" in ")[0].rpartition("/")[2]: i for i, name in enumerate(source.names)}
        assert set(files) == set(images[split])
        for name, i in files.items():
            assert source.read(i) == images[split][name]
            number = IDS.index(name[:9]) if split == "train" else TRUTH[int(name[15:23]) - 1] - 1
            assert source.classes[source.labels[i]].startswith(IDS[number])


def test_a_split_can_be_named_by_its_tar_and_packed(folder: Path, tmp_path: Path) -> None:
    sources = opened(folder / VAL)
    assert list(sources) == ["val"]
    manifest = pack(sources["val"], str(tmp_path / "dst"), PackConfig(resolution=16), lambda _: None)
    assert manifest.class_counts == (1, 1, 1, 3)


def test_without_the_kit_classes_are_ids_and_the_validation_images_have_no_labels(folder: Path) -> None:
    (folder / DEVKIT).unlink()
    assert opened(folder / TRAIN)["train"].classes == tuple(sorted(IDS))
    with pytest.raises(ConfigError, match=rf"{VAL} has no labels: put {DEVKIT} beside it"):
        opened(folder)


def test_the_fingerprint_is_of_the_tar(folder: Path) -> None:
    first, again = opened(folder / TRAIN)["train"], opened(folder / TRAIN)["train"]
    assert first.fingerprint == again.fingerprint
    data = bytearray((folder / TRAIN).read_bytes())
    (folder / TRAIN).write_bytes(data)
    assert opened(folder / TRAIN)["train"].fingerprint != first.fingerprint  # another time of change


@pytest.mark.parametrize("name", [TRAIN, VAL])
def test_every_cut_of_a_tar_before_its_end_is_noticed(folder: Path, name: str) -> None:
    data = (folder / name).read_bytes()
    end = len(data.rstrip(b"\0"))
    for length in range(512, end, 512):
        (folder / name).write_bytes(data[:length])
        with pytest.raises(DataError, match=rf"{name} is damaged.*get it again"):
            opened(folder / name)


def test_a_damaged_header_is_not_taken_for_the_end(folder: Path) -> None:
    data = bytearray((folder / VAL).read_bytes())
    place = data.index(b"ILSVRC2012_val_00000004")
    data[place + 100] ^= 1
    (folder / VAL).write_bytes(data)
    with pytest.raises(DataError, match=r"the header at byte \d+ does not have its checksum"):
        opened(folder / VAL)


@pytest.mark.parametrize(
    ("files", "error", "message"),
    [
        ({"photo.jpg": b"x"}, ConfigError, "has a member photo.jpg: expected n01440764.tar"),
        ({"../n01440764.tar": b"x"}, ConfigError, "paths that leave the archive"),
        ({"n01440764.tar": b"x" * 600}, DataError, "n01440764.tar in .* is damaged"),
        ({}, ConfigError, "has no images"),
        ({"n01440764.tar": tar_with({"n01440764_1.JPEG": jpeg(0)})}, ConfigError, f"{TRAIN} has other classes than {DEVKIT}"),
    ],
)
def test_other_tars_of_that_name_are_refused(
    folder: Path, files: dict[str, bytes], error: type[Exception], message: str
) -> None:
    (folder / TRAIN).write_bytes(tar_with(files))
    with pytest.raises(error, match=message):
        opened(folder)


@pytest.mark.parametrize("damage", ["cut", "no meta", "labels"])
def test_a_damaged_kit_is_named(folder: Path, damage: str) -> None:
    kit = folder / DEVKIT
    if damage == "cut":
        kit.write_bytes(kit.read_bytes()[:-40])
    elif damage == "no meta":
        kit.write_bytes(tar_with({"data/readme.txt": b""}, "w:gz"))
    else:
        (folder / VAL).write_bytes(tar_with({"ILSVRC2012_val_00000007.JPEG": jpeg(0)}))
    with pytest.raises(DataError, match=DEVKIT):
        opened(folder)
