"""CIFAR-10 and CIFAR-100 in their binary version, in a folder or still in the .tar.gz.

A record is the label (CIFAR-100: the coarse one, then the fine one, which is taken) and 3 x 32 x 32 bytes, red first.
"""

import hashlib
import re
from pathlib import Path

import numpy as np

from pipeline.data.tar import members
from pipeline.errors import ConfigError, DataError
from pipeline.packing.sources.base import Names, Source, refuse_climbing, unpacked
from pipeline.untrusted import parsing

_BATCH = re.compile(r"data_batch_\d\.bin|test_batch\.bin|train\.bin|test\.bin")
_CLASSES = ("batches.meta.txt", "fine_label_names.txt")
_BESIDE = ("readme.html", "coarse_label_names.txt")
_PIXELS = 3 * 32 * 32


def find(folder: Path) -> list[Path]:
    """The files of CIFAR in `folder`; none where it holds something else."""
    if (folder / "data_batch_1.bin").exists() or (folder / "test_batch.bin").exists():
        return [path for path in sorted(folder.iterdir()) if _BATCH.fullmatch(path.name) or path.name in _CLASSES]
    if (folder / "fine_label_names.txt").exists():
        return [path for path in (folder / name for name in ("train.bin", "test.bin", _CLASSES[1])) if path.exists()]
    return []


def open_files(place: str, paths: list[Path]) -> list[Source]:
    """The splits in these files. Raises DataError for damaged ones."""
    return _splits(place, {path.name: path.read_bytes() for path in paths})


def open_tar(file: Path) -> list[Source] | None:
    """The splits in `cifar-10-binary.tar.gz` and its kin; None as soon as a member shows that it is something else."""
    files = {}
    with parsing(f"SRC {file} is damaged", "get it again"):
        for member in members(unpacked(file)):
            refuse_climbing(str(file), member.name)
            name = member.name.rpartition("/")[2]
            if not (_BATCH.fullmatch(name) or name in _CLASSES or name in _BESIDE):
                return None
            files[name] = member.data or b""
    return _splits(str(file), files)


def _splits(place: str, files: dict[str, bytes]) -> list[Source]:
    hundred = "train.bin" in files or "test.bin" in files
    text = files.get(_CLASSES[1 if hundred else 0])
    if text is None:
        raise ConfigError(f"SRC {place} has no {_CLASSES[1 if hundred else 0]}, which names the classes: get it again")
    with parsing(f"SRC {place}: {_CLASSES[hundred]}, which names the classes, is not UTF-8", "get it again"):
        classes = tuple(line.strip() for line in text.decode().splitlines() if line.strip())
    batches = sorted(name for name in files if _BATCH.fullmatch(name))
    parts = {"train": [name for name in batches if not name.startswith("test")]}
    parts["test"] = [name for name in batches if name.startswith("test")]
    return [
        _split(split, place, {name: files[name] for name in names}, classes, 2 if hundred else 1)
        for split, names in parts.items()
        if names
    ]


def _split(split: str, place: str, files: dict[str, bytes], classes: tuple[str, ...], labels: int) -> Source:
    for name, data in files.items():
        if not data or len(data) % (labels + _PIXELS):
            raise DataError(f"{name} in {place} has {len(data):,} bytes: no whole number of records; get it again")
    records = np.frombuffer(b"".join(files.values()), np.uint8).reshape(-1, labels + _PIXELS)
    return Source(
        split=split,
        classes=classes,
        names=Names(len(records), lambda i: f"{place}, {split} image {i}"),
        labels=records[:, labels - 1].astype(np.int64),
        read=lambda i: np.ascontiguousarray(records[i, labels:].reshape(3, 32, 32).transpose(1, 2, 0)),
        fingerprint=hashlib.sha256(records.tobytes()).hexdigest(),
        side=32,
    )
