import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.errors import ConfigError, DataError
from pipeline.packing.pack import PackConfig, pack
from pipeline.packing.sources.base import Source
from pipeline.packing.sources.detect import open_source
from pipeline.packing.sources.imagenet import DEVKIT, TRAIN, VAL

IDS = ("n02119789", "n01440764", "n02100735", "n01443537")  # in the order of ILSVRC2012_ID, which is not the sorted one
WORDS = ("kit fox, Vulpes macrotis", "tench, Tinca tinca", "English setter", "goldfish, Carassius auratus")
TRUTH = (3, 1, 4, 2, 1, 1)
NAMES = ("n01440764 tench", "n01443537 goldfish", "n02100735 English setter", "n02119789 kit fox")


def jpeg(seed: int) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (20 + seed, 30, 3), np.uint8)).save(out, "JPEG")
    return out.getvalue()


def tar(files: dict[str, bytes], mode: str = "w") -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as archive:  # type: ignore[call-overload]
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return out.getvalue()


def write_imagenet(folder: Path) -> dict[str, dict[str, bytes]]:
    """The three files in the form in which they are distributed; images by name, for train and val."""
    from scipy.io import savemat

    folder.mkdir(exist_ok=True)
    train = {name: {f"{name}_{i}.JPEG": jpeg(5 * place + i) for i in range(3)} for place, name in enumerate(IDS)}
    (folder / TRAIN).write_bytes(tar({f"{name}.tar": tar(images) for name, images in train.items()}))
    val = {f"ILSVRC2012_val_{i + 1:08d}.JPEG": jpeg(50 + i) for i in range(len(TRUTH))}
    (folder / VAL).write_bytes(tar(val))
    fields = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("gloss", "O"), ("num_children", "O")]
    fields += [("children", "O"), ("wordnet_height", "O"), ("num_train_images", "O")]
    rows = [(i + 1, name, words, "", 0, [], 0, 3) for i, (name, words) in enumerate(zip(IDS, WORDS, strict=True))]
    rows.append((5, "n00000001", "animal", "", 4, [1, 2, 3, 4], 2, 0))  # a group of classes is none
    mat = io.BytesIO()
    savemat(mat, {"synsets": np.array(rows, fields).reshape(-1, 1)})
    kit = "ILSVRC2012_devkit_t12"
    truth = "".join(f"{number}\n" for number in TRUTH).encode()
    files = {
        f"{kit}/readme.txt": b"hello",
        f"{kit}/data/meta.mat": mat.getvalue(),
        f"{kit}/data/ILSVRC2012_validation_ground_truth.txt": truth,
    }
    (folder / DEVKIT).write_bytes(tar(files, "w:gz"))
    return {"train": {key: value for images in train.values() for key, value in images.items()}, "val": val}


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
    manifest = pack(sources["val"], str(tmp_path / "dst"), PackConfig(16), lambda _: None)
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
        ({"n01440764.tar": tar({"n01440764_1.JPEG": jpeg(0)})}, ConfigError, f"{TRAIN} has other classes than {DEVKIT}"),
    ],
)
def test_other_tars_of_that_name_are_refused(
    folder: Path, files: dict[str, bytes], error: type[Exception], message: str
) -> None:
    (folder / TRAIN).write_bytes(tar(files))
    with pytest.raises(error, match=message):
        opened(folder)


@pytest.mark.parametrize("damage", ["cut", "no meta", "labels"])
def test_a_damaged_kit_is_named(folder: Path, damage: str) -> None:
    kit = folder / DEVKIT
    if damage == "cut":
        kit.write_bytes(kit.read_bytes()[:-40])
    elif damage == "no meta":
        kit.write_bytes(tar({"data/readme.txt": b""}, "w:gz"))
    else:
        (folder / VAL).write_bytes(tar({"ILSVRC2012_val_00000007.JPEG": jpeg(0)}))
    with pytest.raises(DataError, match=DEVKIT):
        opened(folder)
