import gzip
import os
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import ConfigError, DataError
from pipeline.packing.sources import fashion_mnist
from pipeline.packing.sources.detect import open_source
from tests.support.datasets.idx import idx, write_idx
from tests.support.patterns import PATTERNS, write_tree


def zip_of(folder: Path, file: Path, prefix: str = "") -> Path:
    with zipfile.ZipFile(file, "w") as archive:
        for path in sorted(folder.rglob("*")):
            archive.write(path, prefix + path.relative_to(folder).as_posix())
        archive.writestr("__MACOSX/junk/x.png", b"")
    return file


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return write_tree(tmp_path / "tree", 3, grey=True)


@pytest.mark.parametrize("form", ["folder", "zip", "zip of the folder"])
def test_class_folders(tree: Path, tmp_path: Path, form: str) -> None:
    places = {
        "folder": lambda: tree,
        "zip": lambda: zip_of(tree, tmp_path / "a.zip"),
        "zip of the folder": lambda: zip_of(tree, tmp_path / "b.zip", "tree/"),
    }
    (source,) = open_source(str(places[form]()))
    assert (source.split, source.classes, source.side) == ("", PATTERNS, None)
    assert source.names == sorted(f"{name}/{i:04d}.png" for name in PATTERNS for i in range(3))
    assert [source.classes[label] for label in source.labels] == [name.split("/")[0] for name in source.names]
    for i, name in enumerate(source.names):
        assert source.read(i) == (tree / name).read_bytes()


def test_folders_below_a_class_belong_to_it_and_other_files_are_mentioned(tree: Path) -> None:
    (tree / "blob" / "more").mkdir()
    (tree / "blob" / "0000.png").rename(tree / "blob" / "more" / "x.PNG")
    (tree / "blob" / "notes.txt").write_text("")
    (tree / ".DS_Store").write_text("")
    said: list[str] = []
    (source,) = open_source(str(tree), said.append)
    assert np.bincount(source.labels).tolist() == [3, 3, 3, 3]
    nested = "1 image in 1 folder below a class folder (such as blob/more), taken as part of the class"
    assert said == [
        f"{tree}: 12 images: 4 class folders; {nested}",
        f"{tree}: passed over 1 .txt file (blob/notes.txt), 1 file of a desktop or NAS (.DS_Store)",
    ]


def test_splits_are_found(tmp_path: Path) -> None:
    write_tree(tmp_path / "tree" / "train", 3, grey=True)
    write_tree(tmp_path / "tree" / "test", 2, grey=True)
    sources = {source.split: source for source in open_source(str(tmp_path / "tree"))}
    assert {split: len(source.labels) for split, source in sources.items()} == {"train": 12, "test": 8}
    assert all(source.classes == PATTERNS for source in sources.values())


def test_splits_must_have_the_same_classes(tmp_path: Path) -> None:
    write_tree(tmp_path / "tree" / "train", 1, grey=True)
    write_tree(tmp_path / "tree" / "test", 1, grey=True)
    (tmp_path / "tree" / "test" / "blob").rename(tmp_path / "tree" / "test" / "dots")
    with pytest.raises(ConfigError, match="class blob is in only one of"):
        open_source(str(tmp_path / "tree"))


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    write_tree(tmp_path / "tree", 1, grey=True)
    for name, other in zip(PATTERNS, ("train", "test", "val", "valid"), strict=True):
        (tmp_path / "tree" / name).rename(tmp_path / "tree" / other)
    (source,) = open_source(str(tmp_path / "tree"), label="name")
    assert source.classes == ("test", "train", "val", "valid")


def test_the_fingerprint_changes_with_an_image_and_only_then(tree: Path) -> None:
    first, second = open_source(str(tree))[0], open_source(str(tree))[0]
    assert first.fingerprint == second.fingerprint
    file = tree / "blob" / "0001.png"
    os.utime(file, ns=(0, 0))
    assert open_source(str(tree))[0].fingerprint != first.fingerprint


@pytest.mark.parametrize("zipped", [True, False])
def test_idx_files(tmp_path: Path, zipped: bool) -> None:
    expected = {part: write_idx(tmp_path, part, n, zipped=zipped) for part, n in (("train", 20), ("t10k", 10))}
    sources = open_source(str(tmp_path))
    assert [source.split for source in sources] == ["train", "test"]
    for source, part in zip(sources, ("train", "t10k"), strict=True):
        images, labels = expected[part]
        assert (source.classes, source.side) == (("0", "1", "2", "3", "4"), 28)
        np.testing.assert_array_equal(source.labels, labels)
        np.testing.assert_array_equal([source.read(i) for i in range(len(labels))], images)


@pytest.mark.parametrize("damage", ["cut", "no labels", "other counts", "not IDX"])
def test_damaged_idx_files_are_named(tmp_path: Path, damage: str) -> None:
    write_idx(tmp_path, "train", 20, zipped=True)
    images, labels = (tmp_path / f"train-{kind}-ubyte.gz" for kind in ("images-idx3", "labels-idx1"))
    if damage == "cut":
        images.write_bytes(images.read_bytes()[:1000])
    elif damage == "no labels":
        labels.unlink()
    elif damage == "other counts":
        labels.write_bytes(idx(np.zeros(19, np.uint8)))
    else:
        images.write_bytes(b"hello")
    with pytest.raises(ConfigError if damage == "no labels" else DataError, match="train-images-idx3"):
        open_source(str(tmp_path))


@pytest.mark.parametrize("path", ["../blob/x.png", "blob/../../x.png", "/blob/x.png", "blob\\..\\..\\x.png"])
def test_a_zip_member_that_leaves_the_zip_is_refused(tree: Path, tmp_path: Path, path: str) -> None:
    file = zip_of(tree, tmp_path / "a.zip")
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr(path, b"")
    with pytest.raises(ConfigError, match=r"a\.zip has a member .* refused"):
        open_source(str(file))


def test_a_zip_bomb_is_refused_before_it_is_unpacked(tree: Path, tmp_path: Path) -> None:
    file = zip_of(tree, tmp_path / "a.zip")
    with zipfile.ZipFile(file, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("blob/zero.png", bytes(80 << 20))
    (source,) = open_source(str(file))
    names = list(source.names)
    with pytest.raises(DataError, match=r"blob/zero\.png in .* a zip bomb is not unpacked"):
        source.read(names.index("blob/zero.png"))
    assert source.read(names.index("blob/0000.png")) == (tree / "blob" / "0000.png").read_bytes()


@pytest.mark.parametrize("damage", ["stored bytes", "compressed bytes"])
def test_a_damaged_zip_member_is_named(tree: Path, tmp_path: Path, damage: str) -> None:
    kind = zipfile.ZIP_STORED if damage == "stored bytes" else zipfile.ZIP_DEFLATED
    with zipfile.ZipFile(tmp_path / "a.zip", "w", kind) as archive:
        archive.write(tree / "blob" / "0000.png", "blob/0000.png")
    data = bytearray((tmp_path / "a.zip").read_bytes())
    data[60:80] = bytes(20)
    (tmp_path / "a.zip").write_bytes(data)
    (source,) = open_source(str(tmp_path / "a.zip"))
    with pytest.raises(DataError, match=r"cannot read blob/0000\.png in .*a\.zip"):
        source.read(0)


def test_an_idx_bomb_is_refused(tmp_path: Path) -> None:
    write_idx(tmp_path, "train", 20, zipped=True)
    header = bytes([0, 0, 8, 3]) + struct.pack(">III", 100_000, 28, 28)
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(header))
    with pytest.raises(DataError, match=r"train-images-idx3.*a zip bomb"):
        open_source(str(tmp_path))


def test_bad_sources_are_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("hello")
    write_tree(tmp_path / "hole", 1, grey=True)
    (tmp_path / "hole" / "zebra").mkdir()
    write_tree(tmp_path / "loose", 1, grey=True)
    (tmp_path / "loose" / "bars" / "0000.png").rename(tmp_path / "loose" / "x.png")
    for place, message in {
        "none": "none does not exist",
        "empty": "empty has no images",
        "file": "file is none of",
        "hole": "class folder zebra has no images",
        "loose": "x.png is in no class folder",
    }.items():
        with pytest.raises(ConfigError, match=message):
            open_source(str(tmp_path / place))
    with pytest.raises(ConfigError, match="copy them here"):
        open_source("memory://images")


def test_a_damaged_zip_is_named(tree: Path, tmp_path: Path) -> None:
    file = zip_of(tree, tmp_path / "a.zip")
    data = bytearray(file.read_bytes())
    data[data.index(b"IDAT") + 30] ^= 1
    file.write_bytes(data)
    (source,) = open_source(str(file))
    with pytest.raises(DataError, match=r"a\.zip.*the zip is damaged"):
        for i in range(12):
            source.read(i)


def test_fashion_mnist_with_other_content_is_refused(tmp_path: Path) -> None:
    write_idx(tmp_path, "train", 20, zipped=True)
    write_idx(tmp_path, "t10k", 10, zipped=True)
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte\.gz from .* checksum"):
        open_source(f"fashion-mnist:{tmp_path}")
    with pytest.raises(ConfigError, match="none does not exist"):
        open_source(f"fashion-mnist:{tmp_path / 'none'}")
    (tmp_path / "x.deb").write_text("hello")
    with pytest.raises((DataError, ConfigError), match="dpkg-deb"):
        open_source(f"fashion-mnist:{tmp_path / 'x.deb'}")


def test_fashion_mnist_lists_what_was_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine without the package, without apt and without a network."""
    monkeypatch.setattr(fashion_mnist, "_INSTALLED", tmp_path / "installed")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    with pytest.raises(ConfigError) as caught:
        open_source("fashion-mnist", lambda _: None)
    for part in ("installed: not there", "cache", "no apt-get here", "refused", "SRC fashion-mnist:PATH"):
        assert part in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.slow
@pytest.mark.parametrize("lists", ["the system's", "none"])
def test_fashion_mnist_comes_from_a_package_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lists: str) -> None:
    """Also where the system has no package lists; the second time from the cache."""
    if not Path("/usr/bin/apt-get").exists():
        pytest.skip("no apt-get on this machine")
    if lists == "none":
        (tmp_path / "lists" / "partial").mkdir(parents=True)
        (tmp_path / "apt.conf").write_text(f'Dir::State::lists "{tmp_path}/lists";\n')
        monkeypatch.setenv("APT_CONFIG", str(tmp_path / "apt.conf"))
    monkeypatch.setattr(fashion_mnist, "_INSTALLED", tmp_path / "installed")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    said: list[str] = []
    train, test = open_source("fashion-mnist", said.append)
    assert "getting Debian's" in said[0]
    assert ("refreshing the package lists first, in a temporary folder" in said) == (lists == "none")
    assert not any("fashion-mnist.s3" in line for line in said)
    assert np.bincount(train.labels).tolist() == [6000] * 10
    assert np.bincount(test.labels).tolist() == [1000] * 10
    said.clear()
    assert open_source("fashion-mnist", said.append)[0].fingerprint == train.fingerprint
    assert not said
