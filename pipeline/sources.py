"""What can be packed: a folder per class, a zip of one, IDX files, and Fashion-MNIST by name.

A source is one split: names, labels, and a function that reads image i. It opens nothing until it is asked to.
"""

import gzip
import hashlib
import re
import threading
import zipfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from pipeline import fashion_mnist
from pipeline.errors import ConfigError, DataError

IMAGES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".pgm", ".tif", ".tiff", ".webp")
SPLITS = ("train", "test", "val", "valid", "validation")
_IDX = re.compile(r"(train|t10k|test|val)[-_.]images[-_.]idx3[-_.]ubyte(\.gz)?")
_IDX_SPLITS = {"t10k": "test"}

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Source:
    """One split of images with labels."""

    split: str
    """train, test, ...; empty where the source is not split."""
    classes: tuple[str, ...]
    """Names by label."""
    names: Sequence[str]
    """Of each image, for messages."""
    labels: NDArray[np.int64]
    """Of each image: [n]."""
    read: Callable[[int], bytes | Pixels]
    """Image i: a file's bytes, or uint8 pixels [H, W]. Threads may call it."""
    fingerprint: str
    """Changes when the images do (for a folder: names, sizes and times of change)."""
    side: int | None = None
    """Pixels of the longer side, where all images have the same size; None where that is not known."""


def open_source(place: str, say: Callable[[str], None] = print) -> list[Source]:
    """The splits at `place`: a folder, a zip, IDX files, `fashion-mnist` or `fashion-mnist:PATH`.

    Raises ConfigError where there is nothing to pack, DataError if what is there is damaged. `say` gets progress notes.
    """
    name, _, where = place.partition(":")
    if name == "fashion-mnist":
        files = fashion_mnist.fetch(Path(where) if where else None, say)
        return [_idx(split, *files[split], classes=fashion_mnist.CLASSES) for split in ("train", "test")]
    if "://" in place:
        raise ConfigError(f"SRC {place}: images are packed from this machine's disk; copy them here first")
    path = Path(place)
    if not path.exists():
        raise ConfigError(f"SRC {place} does not exist: name a folder of class folders, a zip, or `fashion-mnist`")
    if path.is_dir():
        pairs = {file.name: file for file in sorted(path.iterdir()) if _IDX.fullmatch(file.name)}
        return _idx_pairs(pairs) if pairs else _folder(path, say)
    if zipfile.is_zipfile(path):
        return _zip(path, say)
    if _IDX.fullmatch(path.name):
        return _idx_pairs({path.name: path})
    raise ConfigError(f"SRC {place} is neither a folder nor a zip nor ...-images-idx3-ubyte(.gz)")


@dataclass(frozen=True)
class _Entry:
    path: str
    """Relative to the source, with slashes."""
    version: tuple[int, ...]
    """Changes when the file does."""


def _folder(root: Path, say: Callable[[str], None]) -> list[Source]:
    def version(file: Path) -> tuple[int, ...]:
        return file.stat().st_size, file.stat().st_mtime_ns

    files = [path for path in sorted(root.rglob("*")) if not any(p.startswith(".") for p in path.relative_to(root).parts)]
    folders = [path.relative_to(root).as_posix() for path in files if path.is_dir()]
    entries = [_Entry(path.relative_to(root).as_posix(), version(path)) for path in files if path.is_file()]

    def read(path: str) -> bytes:
        try:
            return (root / path).read_bytes()
        except OSError as error:
            raise DataError(f"cannot read {root / path} ({error.strerror}): mend it, then run again") from None

    return _tree(str(root), folders, entries, read, say)


def _zip(file: Path, say: Callable[[str], None]) -> list[Source]:
    archive, lock = zipfile.ZipFile(file), threading.Lock()
    infos = sorted(archive.infolist(), key=lambda info: info.filename)
    hidden = [info for info in infos if any(p.startswith((".", "__MACOSX")) for p in PurePosixPath(info.filename).parts)]
    infos = [info for info in infos if info not in hidden]
    tops = {PurePosixPath(info.filename).parts[0] for info in infos}
    # `zip -r x.zip folder` puts the whole tree below one name, which is then no class.
    top = (
        f"{tops.pop()}/"
        if len(tops) == 1 and not any(info.filename.count("/") == 1 and not info.is_dir() for info in infos)
        else ""
    )

    def read(path: str) -> bytes:
        try:
            with lock:  # one file position for all
                return archive.read(top + path)
        except (zipfile.BadZipFile, OSError, EOFError) as error:
            raise DataError(f"cannot read {path} in {file} ({error}): the zip is damaged, get it again") from None

    entries = [_Entry(i.filename.removeprefix(top), (i.file_size, i.CRC)) for i in infos if not i.is_dir()]
    folders = {str(p) for e in entries for p in PurePosixPath(e.path).parents} | {
        i.filename.removeprefix(top).rstrip("/") for i in infos if i.is_dir()
    }
    return _tree(str(file), sorted(folders - {".", ""}), entries, read, say)


def _tree(
    place: str, folders: Iterable[str], entries: list[_Entry], read: Callable[[str], bytes], say: Callable[[str], None]
) -> list[Source]:
    """Class folders, either directly below `place` or below train/, test/, ..."""
    images = [entry for entry in entries if entry.path.lower().endswith(IMAGES)]
    skipped = [entry.path for entry in entries if not entry.path.lower().endswith(IMAGES)]
    if not images:
        raise ConfigError(f"SRC {place} has no images ({', '.join(IMAGES)}): name a folder of class folders")
    loose = [entry.path for entry in images if "/" not in entry.path]
    if loose:
        raise ConfigError(f"SRC {place}: {loose[0]} is in no class folder; put each image into CLASS/")
    if skipped:
        say(f"skipped {len(skipped)} files that are not images, such as {skipped[0]}")
    tops = sorted({folder for folder in folders if "/" not in folder})
    # A class may be called "train": a split has no images of its own, only class folders.
    split = all(top in SPLITS for top in tops) and not any(entry.path.count("/") == 1 for entry in images)
    if not split:
        return [_classes(place, "", tops, images, read)]
    sources = []
    for top in tops:
        below = [folder.split("/")[1] for folder in folders if folder.startswith(f"{top}/") and folder.count("/") == 1]
        inside = [entry for entry in images if entry.path.startswith(f"{top}/")]
        sources.append(_classes(f"{place}/{top}", top, sorted(below), inside, read))
    for source in sources[1:]:
        if odd := set(source.classes) ^ set(sources[0].classes):
            raise ConfigError(
                f"SRC {place}: class {min(odd)} is in only one of {sources[0].split} and {source.split}; "
                "splits must have the same classes"
            )
    return sources


def _classes(place: str, split: str, classes: list[str], images: list[_Entry], read: Callable[[str], bytes]) -> Source:
    depth = 1 if split else 0
    labels = np.array([classes.index(entry.path.split("/")[depth]) for entry in images], np.int64)
    counts = np.bincount(labels, minlength=len(classes))
    for name, count in zip(classes, counts, strict=True):
        if count == 0:
            raise ConfigError(f"SRC {place}: class folder {name} has no images; add some or remove the folder")
    listing = repr([(entry.path, entry.version) for entry in images]).encode()
    names = [entry.path for entry in images]
    return Source(split, tuple(classes), names, labels, lambda i: read(names[i]), hashlib.sha256(listing).hexdigest())


def _idx_pairs(files: dict[str, Path]) -> list[Source]:
    raw: dict[str, tuple[str, bytes, bytes]] = {}
    for name, path in files.items():
        match = _IDX.fullmatch(name)
        assert match
        labels = path.with_name(name.replace("images", "labels").replace("idx3", "idx1"))
        if not labels.exists():
            raise ConfigError(f"SRC {path} has no labels beside it: {labels.name} is missing")
        raw[_IDX_SPLITS.get(match[1], match[1])] = (str(path), path.read_bytes(), labels.read_bytes())
    order = sorted(raw, key=SPLITS.index)
    sources = [_idx(split, *raw[split]) for split in order]
    classes = max((source.classes for source in sources), key=len)
    return [Source(**{**vars(source), "classes": classes}) for source in sources]


def _idx(split: str, name: str, images: bytes, labels: bytes, classes: tuple[str, ...] = ()) -> Source:
    pixels, targets = _parse_idx(images, name, 3), _parse_idx(labels, f"the labels of {name}", 1)
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


def _parse_idx(data: bytes, name: str, dimensions: int) -> Pixels:
    """An IDX file (LeCun's format: 0, 0, type 8 = uint8, dimensions, big-endian sizes, data), gzipped or not."""
    try:
        if data[:2] == b"\x1f\x8b":
            data = gzip.decompress(data)
        if data[:4] != bytes([0, 0, 8, dimensions]):
            raise ValueError(f"it does not begin as an IDX file of bytes with {dimensions} dimensions")
        shape = np.frombuffer(data, ">u4", dimensions, 4).astype(int)
        return np.frombuffer(data, np.uint8, offset=4 + 4 * dimensions).reshape(shape)
    except (ValueError, OSError, EOFError) as error:
        raise DataError(f"{name} is damaged ({error}): get it again") from None
