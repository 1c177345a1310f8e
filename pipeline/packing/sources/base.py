"""One split of images to be packed, and what the kinds of sources share. `pipeline.packing.sources.detect` opens them."""

import gzip
import shlex
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Generic, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ConfigError, DataError
from pipeline.wording import plural

BLOCK_BYTES = 128 << 20  # of blocks that are mixed at a time

_PIECE = 1 << 20  # bytes of a tar that are unpacked at a time
_BOMB_RATIO, _BOMB_BYTES = 200, 64 << 20

Pixels = NDArray[np.uint8]
Ints = NDArray[np.int64]
T = TypeVar("T")


@dataclass(frozen=True)
class Blocks:
    """How images lie together in a source that reads many at once (row groups, stretches of a tar)."""

    starts: Ints
    """First image of each block, and the number of images at the end: [blocks + 1]."""
    window: int
    """So many blocks are mixed at a time."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """One split of images with labels."""

    split: str
    """train, test, ...; empty where the source is not split."""
    classes: tuple[str, ...]
    """Names by label."""
    names: Sequence[str]
    """Of each image, for messages."""
    labels: Ints
    """Of each image: [n]."""
    read: Callable[[int], bytes | Pixels]
    """Image i: a file's bytes, or uint8 pixels [H, W] or [H, W, 3]. Threads may call it."""
    fingerprint: str
    """Changes when the images do (for files: names, sizes and times of change)."""
    side: int | None = None
    """Pixels of the longer side, where all images have the same size; None where that is not known."""
    blocks: Blocks | None = None
    """None where any image is read as cheaply as the next one."""
    layout: str = ""
    """What the source was taken for, where that had to be recognised."""
    passed: tuple[tuple[str, str], ...] = ()
    """(path, kind) of everything in the source that is not packed."""


class Names(Sequence[str]):
    """Names that are made when somebody asks, for sources of millions of images."""

    def __init__(self, count: int, name: Callable[[int], str]) -> None:
        self._count, self._name = count, name

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, i: int) -> str: ...
    @overload
    def __getitem__(self, i: slice) -> list[str]: ...
    def __getitem__(self, i: int | slice) -> str | list[str]:
        numbers = range(self._count)[i]
        return self._name(numbers) if isinstance(numbers, int) else [self._name(n) for n in numbers]


class BlockCache(Generic[T]):
    """The blocks that were used last. Threads that want the same one wait for a single load."""

    def __init__(self, load: Callable[[int], T], capacity: int) -> None:
        self._load, self._capacity = load, capacity
        self._kept: OrderedDict[int, Future[T]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, block: int) -> T:
        """Block number `block`, with the errors of its load."""
        with self._lock:
            future = self._kept.get(block)
            missing = future is None
            if future is None:
                future = self._kept[block] = Future()
            self._kept.move_to_end(block)
            if len(self._kept) > self._capacity:
                self._kept.popitem(last=False)  # whoever still waits for it holds it
        if missing:
            try:
                future.set_result(self._load(block))
            except BaseException as error:
                future.set_exception(error)  # stays: a damaged block is damaged for each of its images
        return future.result()


def refuse_bomb(name: str, stored: int, claimed: int) -> None:
    """Raise DataError where `stored` bytes claim to hold so many more that only an attack explains it."""
    if claimed > _BOMB_BYTES and claimed > _BOMB_RATIO * stored:
        raise DataError(f"{name} claims to hold {claimed:,} bytes in {stored:,}: a zip bomb is not unpacked; remove it")


def unpacked(tar: Path) -> Iterator[bytes]:
    """Yield the bytes of a tar, unpacked where it is a .tar.gz. Raises DataError where they become too many to be honest."""
    size, found = tar.stat().st_size, 0
    with open(tar, "rb") as file:
        zipped = file.peek(2)[:2] == b"\x1f\x8b"
        with gzip.GzipFile(fileobj=file) if zipped else file as stream:
            while piece := stream.read(_PIECE):
                found += len(piece)
                refuse_bomb(str(tar), size, found)
                yield piece


def refuse_climbing(place: str, path: str) -> None:
    """Raise ConfigError for a member of an archive whose path leaves it."""
    if path.startswith("/") or ".." in path.replace("\\", "/").split("/"):
        raise ConfigError(f"SRC {place} has a member {path!r}: paths that leave the archive are refused; pack a clean one")


def same_classes(place: str, sources: list[Source], numbered: bool = False) -> list[Source]:
    """Return `sources`, if their splits have the same classes. Raises ConfigError otherwise.

    `numbered`: classes are numbers from 0 without names, and the longest list is that of all.
    """
    if numbered:
        classes = max((source.classes for source in sources), key=len)
        return [replace(source, classes=classes) for source in sources]
    first = sources[0]
    for source in sources[1:]:
        if odd := set(source.classes) ^ set(first.classes):
            one, other = (f"{some.split} ({plural(len(some.classes), 'class', 'classes')})" for some in (first, source))
            largest = max(sources, key=lambda source: len(source.classes)).split
            raise ConfigError(
                f"SRC {place}: class {min(odd)} is in only one of {one} and {other}; splits must have the same classes: "
                f"sort the images into the same class folders, or add --split {shlex.quote(largest)}"
            )
    return sources
