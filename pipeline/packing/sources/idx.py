"""Images in LeCun's IDX files (MNIST and its kin), and Fashion-MNIST by name."""

import gzip
import hashlib
import io
import math
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np

from pipeline.errors import ConfigError, DataError
from pipeline.packing.sources import fashion_mnist
from pipeline.packing.sources.base import Pixels, Source, refuse_bomb
from pipeline.packing.sources.layout import SPLITS
from pipeline.untrusted import parsing

NAME = re.compile(r"(train|t10k|test|val)[-_.]images[-_.]idx3[-_.]ubyte(\.gz)?")
_SPLITS = {"t10k": "test"}


def open_fashion_mnist(where: str, say: Callable[[str], None]) -> list[Source]:
    """Its two splits, found at `where` or, if that is empty, anywhere."""
    files = fashion_mnist.fetch(Path(where) if where else None, say)
    return [_idx(split, *files[split], classes=fashion_mnist.CLASSES) for split in ("train", "test")]


def open_idx(images: list[Path]) -> list[Source]:
    """A split for each of these image files, whose labels lie beside them. Raises ConfigError where they are missing."""
    raw: dict[str, tuple[str, bytes, bytes]] = {}
    for path in images:
        match = NAME.fullmatch(path.name)
        assert match
        labels = labels_of(path)
        if not labels.exists():
            raise ConfigError(f"SRC {path} has no labels beside it: {labels.name} is missing")
        raw[_SPLITS.get(match[1], match[1])] = (str(path), path.read_bytes(), labels.read_bytes())
    order = sorted(raw, key=SPLITS.index)
    sources = [_idx(split, *raw[split]) for split in order]
    classes = max((source.classes for source in sources), key=len)
    return [Source(**{**vars(source), "classes": classes}) for source in sources]


def labels_of(images: Path) -> Path:
    """Return the file of the labels that belongs beside this file of images."""
    return images.with_name(images.name.replace("images", "labels").replace("idx3", "idx1"))


def _idx(split: str, name: str, images: bytes, labels: bytes, classes: tuple[str, ...] = ()) -> Source:
    pixels, targets = _parse(images, name, 3), _parse(labels, f"the labels of {name}", 1)
    if len(pixels) != len(targets) or not len(pixels):
        raise DataError(f"{name} has {len(pixels)} images and {len(targets)} labels: the files do not belong together")
    return Source(
        split=split,
        classes=classes or tuple(str(label) for label in range(int(targets.max()) + 1)),
        names=[f"{name}, image {i}" for i in range(len(pixels))],
        labels=targets.astype(np.int64),
        read=lambda i: pixels[i],
        fingerprint=hashlib.sha256(pixels.tobytes() + targets.tobytes()).hexdigest(),
        side=max(pixels.shape[1:]),
    )


def _parse(data: bytes, name: str, dimensions: int) -> Pixels:
    """An IDX file (0, 0, type 8 = uint8, dimensions, big-endian sizes, data), gzipped or not."""
    zipped = data[:2] == b"\x1f\x8b"
    with parsing(f"{name} is damaged", "get it again"), gzip.open(io.BytesIO(data)) if zipped else io.BytesIO(data) as file:
        header = file.read(4 + 4 * dimensions)
        if len(header) < 4 + 4 * dimensions or header[:4] != bytes([0, 0, 8, dimensions]):
            raise ValueError(f"it does not begin as an IDX file of bytes with {dimensions} dimensions")
        shape = [int.from_bytes(header[i : i + 4]) for i in range(4, len(header), 4)]
        if 0 in shape[1:]:
            raise ValueError(f"its images have {' x '.join(map(str, shape[1:]))} pixels")
        size = math.prod(shape)
        refuse_bomb(name, len(data), size)
        return np.frombuffer(file.read(size + 1), np.uint8).reshape(shape)
