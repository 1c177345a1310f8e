import io
import tarfile
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import ConfigError, DataError
from pipeline.packing.sources.detect import open_source
from tests.support.datasets.cifar import tar_of, write_cifar


@pytest.mark.parametrize("hundred", [False, True])
@pytest.mark.parametrize("form", ["folder", "its parent", "tar.gz"])
def test_cifar(tmp_path: Path, hundred: bool, form: str) -> None:
    folder = tmp_path / ("cifar-100-binary" if hundred else "cifar-10-batches-bin")
    expected = write_cifar(folder, hundred)
    place = {"folder": folder, "its parent": tmp_path}.get(form) or tar_of(folder, tmp_path / "cifar.tar.gz")
    sources = open_source(str(place))
    assert [source.split for source in sources] == ["train", "test"]
    for source in sources:
        images, labels = expected[source.split]
        assert (source.classes[3], len(source.classes), source.side) == ("class 3", 100 if hundred else 10, 32)
        np.testing.assert_array_equal(source.labels, labels)
        np.testing.assert_array_equal([source.read(i) for i in range(len(labels))], images)
        assert f"{source.split} image 2" in source.names[2]


@pytest.mark.parametrize("form", ["folder", "tar.gz"])
def test_a_cut_batch_is_named(tmp_path: Path, form: str) -> None:
    folder = tmp_path / "cifar-10-batches-bin"
    write_cifar(folder, False)
    batch = folder / "data_batch_3.bin"
    batch.write_bytes(batch.read_bytes()[:-1])
    place = folder if form == "folder" else tar_of(folder, tmp_path / "c.tar.gz")
    with pytest.raises(DataError, match=r"data_batch_3\.bin in .* no whole number of records"):
        open_source(str(place))


def test_every_cut_of_the_archive_is_noticed_or_takes_nothing_away(tmp_path: Path) -> None:
    """At the end of a tar are zeros, which compress to a few bytes."""
    folder = tmp_path / "cifar-10-batches-bin"
    write_cifar(folder, False)
    whole = tar_of(folder, tmp_path / "c.tar.gz")
    data, noticed = whole.read_bytes(), 0
    for length in range(10, len(data) - 8, len(data) // 30):
        (tmp_path / "cut.tar.gz").write_bytes(data[:length])
        try:
            found = open_source(str(tmp_path / "cut.tar.gz"))
        except DataError as error:
            assert "cut.tar.gz is damaged" in str(error)
            noticed += 1
        else:
            assert [one.fingerprint for one in found] == [one.fingerprint for one in open_source(str(whole))]
    assert noticed > 25


def test_class_names_are_needed(tmp_path: Path) -> None:
    write_cifar(tmp_path / "c", False)
    (tmp_path / "c" / "batches.meta.txt").unlink()
    with pytest.raises(ConfigError, match=r"batches\.meta\.txt"):
        open_source(str(tmp_path / "c"))


def test_a_member_that_leaves_the_archive_is_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "c.tar", "w") as tar:
        member = tarfile.TarInfo("cifar/../../data_batch_1.bin")
        member.size = 3073
        tar.addfile(member, io.BytesIO(bytes(3073)))
    with pytest.raises(ConfigError, match="paths that leave the archive are refused"):
        open_source(str(tmp_path / "c.tar"))


@pytest.mark.long
def test_a_bomb_in_the_archive_is_refused_before_it_is_read(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "c.tar.gz", "w:gz") as tar:
        member = tarfile.TarInfo("data_batch_1.bin")
        member.size = 80 << 20
        tar.addfile(member, io.BytesIO(bytes(member.size)))
    with pytest.raises(DataError, match=r"c\.tar\.gz claims to hold .* a zip bomb is not unpacked"):
        open_source(str(tmp_path / "c.tar.gz"))
