"""Sources as somebody may send them: each ends in one line that names it, before memory is asked for or anything is packed."""

import gzip
import json
import os
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.cli import main
from pipeline.errors import ConfigError, DataError, UserError
from pipeline.packing.sources.detect import open_source
from pipeline.packing.sources.imagenet import DEVKIT, VAL
from tests.support.datasets.cifar import tar_of, write_cifar
from tests.support.datasets.idx import write_idx
from tests.support.datasets.imagenet import tar_with, write_imagenet
from tests.support.datasets.parquet import write_parquet as write_parquet
from tests.support.tars import index_tars, picture_of
from tests.support.tars import write_tar as write_tar

PNG = picture_of(1)
FIVE = b"\0\0\x08\x03" + struct.pack(">III", 5, 28, 28) + bytes(range(256)) * 16


def idx(folder: Path, header: bytes, change: Callable[[bytes], bytes] = gzip.compress) -> Path:
    write_idx(folder, "train", 5, zipped=True)
    (folder / "train-images-idx3-ubyte.gz").write_bytes(change(header))
    return folder


def idx_of_a_bad_block(folder: Path) -> Path:
    return idx(folder, b"", lambda _: gzip.compress(bytes(9))[:10] + b"\xff" * 40)


def zipped(folder: Path, method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(folder / "a.zip", "w", method) as archive:
        for name in ("a/0.png", "b/0.png"):
            archive.writestr(name, PNG)
    return folder / "a.zip"


def zip_with(change: Callable[[bytes], bytes], method: int = zipfile.ZIP_DEFLATED) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        path = zipped(folder, method)
        path.write_bytes(change(path.read_bytes()))
        return path

    return make


def replaced(old: bytes, new: bytes) -> Callable[[bytes], bytes]:
    def change(data: bytes) -> bytes:
        assert old in data
        return data.replace(old, new)

    return change


def in_directory(offset: int, value: bytes) -> Callable[[bytes], bytes]:
    """Change bytes of every entry of the zip's directory."""

    def change(data: bytes) -> bytes:
        out = bytearray(data)
        place = data.find(b"PK\1\2")
        while place >= 0:
            out[place + offset : place + offset + len(value)] = value
            place = data.find(b"PK\1\2", place + 4)
        return bytes(out)

    return change


def bzip2_bomb(folder: Path) -> Path:
    """A gigabyte of zeros in a kilobyte, which claims to hold a hundred bytes."""
    with zipfile.ZipFile(folder / "a.zip", "w", zipfile.ZIP_BZIP2) as archive, archive.open("a/0.png", "w") as member:
        for _ in range(8):
            member.write(bytes(16 << 20))
    return zip_with_sizes(folder / "a.zip", 100)


def zip_with_sizes(path: Path, size: int) -> Path:
    data = bytearray(in_directory(24, struct.pack("<I", size))(path.read_bytes()))
    data[22:26] = struct.pack("<I", size)
    path.write_bytes(data)
    return path


def devkit(mat: bytes) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        write_imagenet(folder / "i")
        kit = "ILSVRC2012_devkit_t12/data/"
        files = {f"{kit}meta.mat": mat, f"{kit}ILSVRC2012_validation_ground_truth.txt": b"1\n"}
        (folder / "i" / DEVKIT).write_bytes(tar_with(files, "w:gz"))
        return folder / "i" / VAL

    return make


def tar_of_a_negative_size(folder: Path) -> Path:
    """The header that makes Python's tarfile loop for ever."""
    write_imagenet(folder / "i")
    data = bytearray((folder / "i" / VAL).read_bytes())
    data[124:136] = b"\xff" * 10 + b"\xfe\0"
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(data[:512])
    (folder / "i" / VAL).write_bytes(data)
    return folder / "i" / VAL


def cifar_in_latin_1(folder: Path) -> Path:
    write_cifar(folder / "c", hundred=False)
    (folder / "c" / "batches.meta.txt").write_bytes(b"caf\xe9\n" * 10)
    return folder / "c"


def cifar_of_a_pax_bomb(folder: Path) -> Path:
    write_cifar(folder / "c", hundred=False)
    with tarfile.open(tar_of(folder / "c", folder / "c.tar.gz"), "r:gz") as archive:
        old = [(member, archive.extractfile(member)) for member in archive if member.isreg()]
        with tarfile.open(
            folder / "d.tar.gz", "w:gz", format=tarfile.PAX_FORMAT, pax_headers={"comment": "0" * (90 << 20)}
        ) as out:
            for member, file in old:
                out.addfile(member, file)
    return folder / "d.tar.gz"


def parquet(change: Callable[[Path], None]) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        change(folder / "x.parquet")
        return folder

    return make


def of_labels(labels: Any, **given: Any) -> Callable[[Path], Path]:
    return parquet(lambda path: write_parquet(path, [PNG] * len(labels), labels, **given))


def many_rows(path: Path) -> None:
    """Two million rows without an image, in some kilobytes."""
    image = pa.DictionaryArray.from_arrays(pa.array(np.zeros(2_000_000, np.int32)), pa.array([PNG], pa.binary()))
    pq.write_table(pa.table({"image": image.cast(pa.binary())}), path, compression="zstd")


def a_long_name(path: Path) -> None:
    names = pa.DictionaryArray.from_arrays(pa.array(np.zeros(9, np.int32)), pa.array(["n" * 100_000]))
    pq.write_table(pa.table({"image": pa.array([PNG] * 9, pa.binary()), "label": names}), path)


def a_column_of_latin_1(path: Path) -> None:
    write_parquet(path, [PNG] * 2, ["cafe", "dogs"])
    path.write_bytes(path.read_bytes().replace(b"cafe", b"caf\xe9"))


def stylegan(labels: object) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / "00000").mkdir()
        (folder / "00000" / "img0.png").write_bytes(PNG)
        (folder / "dataset.json").write_text(labels if isinstance(labels, str) else json.dumps({"labels": labels}))
        return folder

    return make


MADE: dict[str, tuple[Callable[[Path], Path], str]] = {
    "IDX, a bad deflate block": (
        idx_of_a_bad_block,
        r"ubyte\.gz is damaged: error: Error -3 while .*get it again",
    ),
    "IDX, cut": (
        lambda at: idx(at, FIVE, lambda data: gzip.compress(data)[:-20]),
        "is damaged: EOFError",
    ),
    "IDX of 5 x 0 x 28": (lambda at: idx(at, b"\0\0\x08\x03" + struct.pack(">III", 5, 0, 28)), "images have 0 x 28 pixels"),
    "IDX, half a header": (lambda at: idx(at, b"\0\0\x08\x03\0\0"), "does not begin as an IDX file"),
    "IDX, fewer bytes": (
        lambda at: idx(at, b"\0\0\x08\x03" + struct.pack(">III", 5, 9, 9)),
        "ValueError: cannot reshape",
    ),
    "zip, no directory": (zip_with(lambda data: data[:-40] + bytes(40)), "is none of: zip"),
    "zip, a broken directory": (zip_with(replaced(b"PK\1\2", b"PK\1\7")), r"a\.zip: BadZipFile.*damaged or its names are"),
    "zip of version 9.9": (zip_with(in_directory(6, bytes([99, 0]))), r"a\.zip: NotImplementedError: zip file version 9.9"),
    "zip, locked": (zip_with(in_directory(8, b"\1")), r"a/0\.png in .*password required.*damaged or locked"),
    "zip of deflate64": (zip_with(in_directory(10, bytes([9, 0]))), r"a/0\.png in .*NotImplementedError"),
    "zip of bzip2, a bomb": (bzip2_bomb, r"cannot read a/0\.png .*it does not have its checksum"),
    "devkit, empty meta.mat": (devkit(b""), r"devkit_t12\.tar\.gz is damaged: ValueError: .*MatReadError"),
    "devkit, version 7.3": (
        devkit(b"MATLAB 7.3 MAT-file".ljust(124) + b"\0\2IM"),
        "is damaged: ValueError: NotImpl",
    ),
    "tar, a negative size": (tar_of_a_negative_size, r"val\.tar is damaged: TarError: the header at byte 0 has no number"),
    "CIFAR in latin-1": (cifar_in_latin_1, r"batches\.meta\.txt, which names the classes, is not UTF-8.*0xe9"),
    "CIFAR, a pax bomb": (cifar_of_a_pax_bomb, r"d\.tar\.gz is damaged: TarError: .*claims a name of 9\d+ bytes"),
    "parquet, ids": (
        of_labels([1, 2_000_000_000], features=None),
        "label 2000000000 for 2 images: number the classes from 0, or add --label none",
    ),
    "parquet, 50,000,000": (of_labels([50_000_000, 0], features=None), "label 50000000 for 2 images"),
    "parquet, unsigned": (of_labels(pa.array([2**64 - 1, 0], pa.uint64())), r"is damaged: ArrowInvalid"),
    "parquet, latin-1": (parquet(a_column_of_latin_1), r"is damaged: UnicodeDecodeError"),
    "parquet, many rows": (parquet(many_rows), r"claims to hold 2,000,000 rows in [\d,]+ bytes"),
    "parquet, a long name": (parquet(a_long_name), "label of 100,000 bytes: make it a name, or add --label none"),
    "StyleGAN, ids": (stylegan([["00000/img0.png", 2_000_000_000]]), "number the classes from 0, or add --label none"),
    "StyleGAN, deep": (stylegan("[" * 100_000), "cannot be read: RecursionError"),
}


def read_all(place: Path) -> None:
    for source in open_source(str(place), lambda _: None, None, "none" if "rows" in place.name else None):
        for i in range(len(source.labels)):
            source.read(i)


@pytest.mark.long
@pytest.mark.parametrize("name", MADE)
def test_what_is_damaged_or_hostile_ends_in_one_line(tmp_path: Path, name: str) -> None:
    make, says = MADE[name]
    (tmp_path / ("rows" if "rows" in name else "src")).mkdir()
    place = make(next(tmp_path.iterdir()))
    with pytest.raises(UserError, match=says) as refused:
        read_all(place)
    assert isinstance(refused.value, DataError | ConfigError) and "\n" not in str(refused.value)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_zip_of_every_method_is_read(tmp_path: Path, method: int) -> None:
    path = zipped(tmp_path, method)
    (source,) = open_source(str(path), lambda _: None)
    assert [source.read(i) for i in range(2)] == [PNG, PNG]
    data = bytearray(path.read_bytes())
    data[len("a/0.png") + 30 + 40] ^= 0xFF
    path.write_bytes(data)
    (source,) = open_source(str(path), lambda _: None)
    with pytest.raises(DataError, match=r"cannot read a/0\.png"):
        source.read(0)


def test_class_names_that_are_not_utf_8_are_refused_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in (b"caf\xe9", b"dog"):
        folder = os.fsdecode(os.fsencode(tmp_path / "src") + b"/" + name)
        os.makedirs(folder)
        Path(folder, "0.png").write_bytes(PNG)
    shard = ["shard", str(tmp_path / "src"), str(tmp_path / "dst"), "--resolution", "16"]
    assert main(shard) == 78
    assert r"the name of the class caf\xe9 is not UTF-8: rename it, or add --label none" in capsys.readouterr().err
    assert not (tmp_path / "dst").exists()
    assert main([*shard, "--label", "none"]) == 0
    tars = write_tar(tmp_path / "tars" / "0.tar", [(os.fsdecode(b"caf\xe9/0.png"), PNG)]).parent
    assert main(["index", str(tars), "--label", "name"]) == 65
    assert "has a label that is not UTF-8" in capsys.readouterr().err
    assert [path.name for path in tars.iterdir()] == ["0.tar"]


def test_tars_that_a_manifest_cannot_name_are_not_read(tmp_path: Path) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    write_tar(folder / "0.tar", [("0.png", PNG), ("0.cls", b"0")])
    with pytest.raises(ConfigError, match=r"caf\\xe9 is not UTF-8"):
        index_tars(folder, tmp_path / "idx")
    write_tar(Path(os.fsdecode(os.fsencode(tmp_path) + b"/tars/\xe9.tar")), [("0.png", PNG), ("0.cls", b"0")])
    with pytest.raises(ConfigError, match=r"\\xe9\.tar is not UTF-8"):
        index_tars(tmp_path / "tars")
    index_tars(folder)  # beside them, the manifest does not name the folder


def test_labels_that_the_named_classes_do_not_have_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_parquet(tmp_path / "src" / "x.parquet", [PNG] * 2, [0, 2_000_000_000])
    assert main(["shard", str(tmp_path / "src"), str(tmp_path / "dst"), "--resolution", "16"]) == 78
    assert "has the label 2000000000, and there are" in capsys.readouterr().err
