"""Images in one folder per class, on the disk or in a zip, with or without train/ and test/ above."""

import hashlib
import os
import threading
import zipfile
import zlib
from array import array
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from pipeline.errors import ConfigError, DataError
from pipeline.source import SPLITS, Ints, Source, refuse_bomb, refuse_climbing, same_classes

IMAGES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".pgm", ".tif", ".tiff", ".webp")

Read = Callable[[str], bytes]


@dataclass(frozen=True)
class _Listing:
    """Files by path: about 100 bytes each, for there may be millions."""

    paths: list[str]
    """Relative to the source, with slashes, sorted."""
    versions: Ints
    """Two numbers that change when the file does: [files, 2]."""

    def only(self, wanted: Callable[[str], bool]) -> "_Listing":
        chosen = [i for i, path in enumerate(self.paths) if wanted(path)]
        return _Listing([self.paths[i] for i in chosen], self.versions[chosen])


def _listing(files: Iterable[tuple[str, int, int]]) -> _Listing:
    paths, versions = [], array("q")
    for path, *version in files:
        paths.append(path)
        versions.extend(version)
    order = sorted(range(len(paths)), key=paths.__getitem__)
    return _Listing([paths[i] for i in order], np.array(versions, np.int64).reshape(-1, 2)[order])


def open_folder(root: Path, say: Callable[[str], None]) -> list[Source]:
    """The splits below `root`. Raises ConfigError where there are no images in class folders."""
    folders: list[str] = []

    def files() -> Iterable[tuple[str, int, int]]:
        for folder, below, names in os.walk(root):
            below[:] = [name for name in below if not name.startswith(".")]
            place = Path(folder).relative_to(root)
            folders.extend((place / name).as_posix() for name in below)
            for name in names:
                if not name.startswith(".") and os.path.isfile(path := os.path.join(folder, name)):
                    yield (place / name).as_posix(), os.stat(path).st_size, os.stat(path).st_mtime_ns

    def read(path: str) -> bytes:
        try:
            return (root / path).read_bytes()
        except OSError as error:
            raise DataError(f"cannot read {root / path} ({error.strerror}): mend it, then run again") from None

    return _tree(str(root), _listing(files()), folders, read, say)


def open_zip(file: Path, say: Callable[[str], None]) -> list[Source]:
    """The splits in a zip, which is read where it lies. Raises as `open_folder`, and for members that leave the zip."""
    archive, lock = zipfile.ZipFile(file), threading.Lock()
    infos = [info for info in archive.infolist() if not _hidden(info.filename)]
    for info in infos:
        refuse_climbing(str(file), info.filename)
    tops = {PurePosixPath(info.filename).parts[0] for info in infos}
    loose = any(info.filename.count("/") == 1 and not info.is_dir() for info in infos)
    # `zip -r x.zip folder` puts the whole tree below one name, which is then no class.
    top = f"{tops.pop()}/" if len(tops) == 1 and not loose else ""

    def read(path: str) -> bytes:
        info = archive.getinfo(top + path)
        refuse_bomb(f"{path} in {file}", info.compress_size, info.file_size)
        try:
            with lock:  # it counts its open members
                member = archive.open(info)
            try:
                return member.read()
            finally:
                with lock:
                    member.close()
        except (zipfile.BadZipFile, OSError, EOFError, zlib.error, RuntimeError) as error:
            raise DataError(f"cannot read {path} in {file} ({error}): the zip is damaged or locked, get it again") from None

    listing = _listing((info.filename.removeprefix(top), info.file_size, info.CRC) for info in infos if not info.is_dir())
    folders = {str(parent) for path in listing.paths for parent in PurePosixPath(path).parents}
    folders |= {info.filename.removeprefix(top).rstrip("/") for info in infos if info.is_dir()}
    return _tree(str(file), listing, sorted(folders - {".", ""}), read, say)


def _hidden(path: str) -> bool:
    return any(part.startswith("__MACOSX") or (part.startswith(".") and part not in (".", "..")) for part in path.split("/"))


def _tree(place: str, files: _Listing, folders: list[str], read: Read, say: Callable[[str], None]) -> list[Source]:
    """Class folders, either directly below `place` or below train/, test/, ..."""
    images = files.only(lambda path: path.lower().endswith(IMAGES))
    if not images.paths:
        raise ConfigError(f"SRC {place} has no images ({', '.join(IMAGES)}): name a folder of class folders")
    loose = next((path for path in images.paths if "/" not in path), None)
    if loose:
        raise ConfigError(f"SRC {place}: {loose} is in no class folder; put each image into CLASS/")
    if len(images.paths) < len(files.paths):
        odd = next(path for path in files.paths if not path.lower().endswith(IMAGES))
        say(f"skipped {len(files.paths) - len(images.paths)} files that are not images, such as {odd}")
    tops = sorted({folder for folder in folders if "/" not in folder})
    # A class may be called "train": a split has no images of its own, only class folders.
    split = all(top in SPLITS for top in tops) and not any(path.count("/") == 1 for path in images.paths)
    if not split:
        return [_classes(place, "", tops, images, read)]
    sources = []
    for top in tops:
        below = [folder.split("/")[1] for folder in folders if folder.startswith(f"{top}/") and folder.count("/") == 1]
        inside = images.only(lambda path, top=top: path.startswith(f"{top}/"))  # type: ignore[misc]
        sources.append(_classes(f"{place}/{top}", top, sorted(below), inside, read))
    return same_classes(place, sources)


def _classes(place: str, split: str, classes: list[str], images: _Listing, read: Read) -> Source:
    depth, number = (1 if split else 0), {name: label for label, name in enumerate(classes)}
    names = images.paths
    labels = np.array([number[path.split("/", depth + 1)[depth]] for path in names], np.int64)
    counts = np.bincount(labels, minlength=len(classes))
    for name, count in zip(classes, counts, strict=True):
        if count == 0:
            raise ConfigError(f"SRC {place}: class folder {name} has no images; add some or remove the folder")
    seal = hashlib.sha256(images.versions.tobytes())
    for path in names:
        seal.update(path.encode(errors="surrogateescape") + b"\0")
    return Source(split, tuple(classes), names, labels, lambda i: read(names[i]), seal.hexdigest())
