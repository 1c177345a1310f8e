"""ImageNet (ILSVRC 2012) as it is distributed, read where it lies: nothing is unpacked.

The training tar holds a tar per class, the validation tar images whose labels the development kit has. Labels are the
places of the sorted WordNet ids, as everybody numbers ImageNet's classes. One pass notes where each image is, 20 bytes
for each; then any image is one read.
"""

import functools
import hashlib
import importlib.util
import io
import os
import re
import subprocess
import sys
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from pipeline.data.tar import FileStream, members
from pipeline.errors import ConfigError, DataError
from pipeline.packing.sources.base import Ints, Names, Source, refuse_climbing, unpacked
from pipeline.untrusted import parse, parsing

TRAIN, VAL, DEVKIT = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar", "ILSVRC2012_devkit_t12.tar.gz"

_CLASS = re.compile(r"(?:.*/)?(n\d{8})\.tar")
_VAL = re.compile(r"(?:.*/)?ILSVRC2012_val_(\d{8})\.JPEG")
_KIT = ("data/meta.mat", "data/ILSVRC2012_validation_ground_truth.txt")
_KIT_BYTES = 16 << 20  # of one of its files; they have 100 kB

_READ_MAT = """
import io, json, sys
import numpy
from scipy.io import loadmat
rows = numpy.atleast_1d(loadmat(io.BytesIO(sys.stdin.buffer.read()), squeeze_me=True)["synsets"])
rows = [row for row in rows if int(row["num_children"]) == 0]  # the others are groups of classes
print(json.dumps([(int(row["ILSVRC2012_ID"]), str(row["WNID"]), str(row["words"])) for row in rows]))
"""


def open_imagenet(place: str, tars: list[Path], say: Callable[[str], None]) -> list[Source]:
    """The splits in these tars (`TRAIN`, `VAL`), with the `DEVKIT` beside them.

    Classes are called by id and first word, as in "n01440764 tench"; by id alone where there is no development kit.
    Raises ConfigError where the validation tar has no development kit, DataError for a damaged tar.
    """
    kit = tars[0].with_name(DEVKIT)
    words, truth = _devkit(kit) if kit.exists() else ({}, [])
    sources = []
    for tar in tars:
        say(f"looking up where the images are in {tar.name}")
        sources.append(_train(tar, words) if tar.name == TRAIN else _val(tar, words, truth))
    if len({source.classes for source in sources}) > 1:
        raise ConfigError(f"SRC {place}: {TRAIN} has other classes than {DEVKIT}: get both again")
    return sources


class _Places:
    """Where images lie in a tar: offset and length of each."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.offsets, self.lengths, self.keys = array("q"), array("i"), array("i")

    def add(self, offset: int, length: int, key: int) -> None:
        if length >> 31:
            raise DataError(f"SRC {self.file} has an image of {length:,} bytes at byte {offset:,}: get it again")
        self.offsets.append(offset)
        self.lengths.append(length)
        self.keys.append(key)

    def source(self, split: str, classes: tuple[str, ...], labels: Ints) -> Source:
        descriptor = os.open(self.file, os.O_RDONLY)  # stays open as long as the program

        def name(i: int) -> str:
            header = os.pread(descriptor, 512, self.offsets[i] - 512)  # that of the image comes right before it
            return f"{header[:100].rstrip(bytes(1)).decode(errors='replace')} in {self.file}"

        def read(i: int) -> bytes:
            data = os.pread(descriptor, self.lengths[i], self.offsets[i])
            if len(data) < self.lengths[i]:
                raise DataError(f"{self.file} ends before byte {self.offsets[i] + self.lengths[i]:,}: get it again")
            return data

        found = self.file.stat()
        seal = hashlib.sha256(repr((self.file.name, found.st_size, found.st_mtime_ns)).encode())
        for numbers in (self.offsets, self.lengths, labels):
            seal.update(np.asarray(numbers).tobytes())
        return Source(
            split=split, classes=classes, names=Names(len(labels), name), labels=labels, read=read, fingerprint=seal.hexdigest()
        )


def _train(file: Path, words: dict[str, str]) -> Source:
    ids: list[str] = []
    places = _Places(file)
    with open(file, "rb", buffering=0) as stream:
        for outer, start, length in _members(stream, str(file)):
            match = _CLASS.fullmatch(outer)
            if not match:
                raise ConfigError(f"SRC {file} has a member {outer}: expected n01440764.tar and so on, a tar for each class")
            for _, offset, size in _members(stream, f"{outer} in {file}", start, length):
                places.add(start + offset, size, len(ids))
            ids.append(match[1])
    if not places.keys:
        raise ConfigError(f"SRC {file} has no images: get it again")
    order = sorted(ids)
    labels = {name: label for label, name in enumerate(order)}
    number = np.array([labels[name] for name in ids], np.int64)
    return places.source("train", _names(order, words), number[np.asarray(places.keys)])


def _val(file: Path, words: dict[str, str], truth: list[str]) -> Source:
    if not words:
        raise ConfigError(f"SRC {file} has no labels: put {DEVKIT} beside it, or name {TRAIN} itself as SRC")
    places = _Places(file)
    with open(file, "rb", buffering=0) as stream:
        for name, offset, size in _members(stream, str(file)):
            match = _VAL.fullmatch(name)
            if not match or not 1 <= int(match[1]) <= len(truth):
                raise DataError(f"SRC {file} has a member {name}, for which {DEVKIT} has no label: get both again")
            places.add(offset, size, int(match[1]) - 1)
    if not places.keys:
        raise ConfigError(f"SRC {file} has no images: get it again")
    order = sorted(words)
    number = {name: label for label, name in enumerate(order)}
    return places.source("val", _names(order, words), np.array([number[truth[key]] for key in places.keys], np.int64))


def _names(ids: list[str], words: dict[str, str]) -> tuple[str, ...]:
    return tuple(f"{name} {words[name]}" if name in words else name for name in ids)


def _members(stream: io.FileIO, place: str, start: int = 0, length: int | None = None) -> Iterator[tuple[str, int, int]]:
    """Yield (name, offset from `start`, length) of each file in a tar. Raises DataError where it is damaged or cut."""
    whole = os.fstat(stream.fileno()).st_size if length is None else length
    with parsing(f"SRC {place} is damaged", "get it again"):
        for member in members(FileStream(stream.fileno(), start, whole), lambda *_: False):
            refuse_climbing(place, member.name)
            yield member.name, member.offset, member.size


def _devkit(file: Path) -> tuple[dict[str, str], list[str]]:
    """(first word by WordNet id, for the classes; the id of each validation image)."""
    if not importlib.util.find_spec("scipy"):
        raise ConfigError(f"{file.name} has a MATLAB file: `pip install 'biggan-pipeline[imagenet]'` to read it")
    files: dict[str, bytes] = {}
    with parsing(f"{file} is damaged", "get it again"):
        for member in members(unpacked(file), lambda name, size: name.endswith(_KIT) and size <= _KIT_BYTES):
            refuse_climbing(str(file), member.name)
            if member.data is not None:
                files[member.name.rpartition("/")[2]] = member.data
        rows = _synsets(files["meta.mat"])
        by_number = {number: name for number, name, _ in rows}
        truth = [by_number[int(line)] for line in files["ILSVRC2012_validation_ground_truth.txt"].split()]
        return {name: words.split(",")[0] for _, name, words in rows}, truth


@functools.lru_cache(maxsize=1)
def _synsets(mat: bytes) -> list[tuple[int, str, str]]:
    """(ILSVRC2012_ID, WNID, words) of each class, in a process of its own: a damaged file makes SciPy's reader crash."""
    command = [sys.executable, "-I", "-c", _READ_MAT]
    one_thread = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(command, input=mat, capture_output=True, env=one_thread, check=False)
    if done.returncode:
        raise ValueError((done.stderr.decode(errors="replace").strip() or "SciPy cannot read it").splitlines()[-1])
    return parse(list[tuple[int, str, str]], done.stdout, "meta.mat")
