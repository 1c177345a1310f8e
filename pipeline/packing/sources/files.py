"""All files of a folder or a zip, sorted into images, other files, and what is passed over. Links are followed once."""

import bz2
import copy
import lzma
import os
import stat
import threading
import zipfile
import zlib
from array import array
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import numpy as np

from pipeline.errors import DataError
from pipeline.packing.sources.base import Ints, refuse_bomb, refuse_climbing
from pipeline.packing.sources.layout import clutter, has_image_name, kind_of, split_name
from pipeline.untrusted import parsing

LABELS = "dataset.json"
_DICTIONARY = 256 << 20  # bytes that an LZMA member may ask for

Read = Callable[[str], bytes]


@dataclass(frozen=True, kw_only=True)
class Files:
    """Everything at one place, by path: relative to it, with slashes."""

    place: str
    paths: list[str]
    """Of the images, sorted."""
    versions: Ints
    """Two numbers that change when the image does: [images, 2]."""
    identities: Ints
    """Device and inode of each image, to recognise one that links show twice: [images, 2]."""
    linked: Ints
    """1 for an image that was reached through a link: [images]."""
    folders: list[str]
    """All that were entered, sorted."""
    others: list[str]
    """Files that are no images, sorted."""
    passed: list[tuple[str, str]]
    """(path, kind) of everything else: broken links, hidden files, ..."""
    read: Read
    is_zip: bool = False

    def under(self, prefix: str, wanted: Callable[[str], bool] = lambda _: True) -> "Ints":
        """Return the numbers of the images whose path starts with `prefix` and that are `wanted`."""
        return np.array([i for i, path in enumerate(self.paths) if path.startswith(prefix) and wanted(path)], np.int64)

    def left_over(self, prefix: str = "") -> list[tuple[str, str]]:
        """Return (path, kind) of everything under `prefix` that is no image."""
        rest = [(path, kind_of(path)) for path in self.others] + self.passed
        return [(path, kind) for path, kind in rest if path.startswith(prefix)]


@dataclass
class _Found:
    """What a walk has met so far: about 150 bytes for each image, as there may be millions."""

    paths: list[str] = field(default_factory=list)
    numbers: "array[int]" = field(default_factory=lambda: array("q"))
    folders: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    passed: list[tuple[str, str]] = field(default_factory=list)

    def file(self, path: str, version: tuple[int, int], identity: tuple[int, int] = (0, 0), linked: bool = False) -> None:
        if kind := clutter(path.rpartition("/")[2], False):
            self.passed.append((path, kind))
        elif has_image_name(path):
            self.paths.append(path)
            self.numbers.extend((*version, *identity, linked))
        else:
            self.others.append(path)

    def sorted(self, place: str, read: Read, is_zip: bool = False) -> Files:
        order = sorted(range(len(self.paths)), key=self.paths.__getitem__)
        numbers = np.array(self.numbers, np.int64).reshape(-1, 5)[order]
        return Files(
            place=place,
            paths=[self.paths[i] for i in order],
            versions=np.ascontiguousarray(numbers[:, :2]),
            identities=numbers[:, 2:4],
            linked=numbers[:, 4],
            folders=sorted(self.folders),
            others=sorted(self.others),
            passed=sorted(self.passed),
            read=read,
            is_zip=is_zip,
        )


def folder_files(root: Path) -> Files:
    """Return all files below `root`.

    A link to a folder is followed, but not back to a folder above it, and not twice below one class folder.
    """
    found = _Found()
    top = os.stat(root)
    met: set[tuple[str, int, int]] = set()
    waiting: list[tuple[str, str, tuple[tuple[int, int], ...], bool]]
    waiting = [(str(root), "", ((top.st_dev, top.st_ino),), False)]
    while waiting:
        folder, below, above, linked = waiting.pop()
        with os.scandir(folder) as listing:
            entries = sorted(listing, key=lambda entry: (entry.is_symlink(), entry.name), reverse=True)
        for entry in entries:
            path = below + entry.name
            try:
                status = entry.stat()
            except OSError as error:
                if not entry.is_symlink():
                    raise DataError(f"cannot read {root / path} ({error.strerror}): fix it, then run again") from None
                found.passed.append((path, "broken link"))
                continue
            identity, through = (status.st_dev, status.st_ino), linked or entry.is_symlink()
            if stat.S_ISREG(status.st_mode):
                found.file(path, (status.st_size, status.st_mtime_ns), identity, through)
            elif not stat.S_ISDIR(status.st_mode):
                found.passed.append((path, "special file"))
            elif kind := clutter(entry.name, True):
                found.passed.append((path, kind))
            elif identity in above:
                found.passed.append((path, "link back to a folder above it"))
            elif (scope := ("/".join(path.split("/")[:2]), *identity)) in met:
                found.passed.append((path, "link to a folder of the same class"))
            else:
                met.add(scope)
                found.folders.append(path)
                waiting.append((entry.path, f"{path}/", (*above, identity), through))

    def read(path: str) -> bytes:
        try:
            return (root / path).read_bytes()
        except OSError as error:
            raise DataError(f"cannot read {root / path} ({error.strerror}): fix it, then run again") from None

    return found.sorted(str(root), read)


def zip_files(file: Path) -> Files:
    """Return all files in a zip, which is read where it lies. Raises ConfigError for members that leave the zip.

    Backslashes are slashes, as Windows writes them. Of several members of one path the last one counts, as for `unzip`.
    """
    with parsing(f"cannot read {file}", "the zip is damaged or its names are: get it again"):
        archive, lock = zipfile.ZipFile(file), threading.Lock()
    found, folders = _Found(), set()
    members: dict[str, zipfile.ZipInfo] = {}
    hidden: dict[str, str] = {}
    for info in archive.infolist():
        refuse_climbing(str(file), info.filename)
        path = "/".join(part for part in info.filename.replace("\\", "/").split("/") if part not in ("", "."))
        is_folder = info.filename.endswith(("/", "\\"))
        *above, name = path.split("/")
        parents = ["/".join(above[: depth + 1]) for depth in range(len(above))] + ([path] if is_folder else [])
        kinds = [(parent, kind) for parent in parents if (kind := clutter(parent.rpartition("/")[2], True))]
        if kinds:
            hidden.setdefault(*kinds[0])
            continue
        folders.update(parents)
        if is_folder or not name:
            continue
        if stat.S_ISLNK(info.external_attr >> 16):
            found.passed.append((path, "link in a zip"))
            continue
        if path in members:
            found.passed.append((path, "file that the zip has again"))
        members[path] = info
    found.passed += hidden.items()
    top = _top(list(members), folders)
    for path, info in members.items():
        found.file(path.removeprefix(top), (info.file_size, info.CRC))
    found.folders = sorted({folder.removeprefix(top) for folder in folders} - {top.rstrip("/")})
    found.passed = [(path.removeprefix(top), kind) for path, kind in found.passed]

    def read(path: str) -> bytes:
        info = members.get(top + path) or members[path]
        refuse_bomb(f"{path} in {file}", info.compress_size, info.file_size)
        raw = info
        if info.compress_type in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):  # zipfile would unpack them without a bound
            raw = copy.copy(info)
            raw.compress_type, raw.file_size, raw.CRC = zipfile.ZIP_STORED, info.compress_size, cast(int, None)
        with parsing(f"cannot read {path} in {file}", "the zip is damaged or locked: get it again"):
            with lock:  # it counts its open members
                member = archive.open(raw)
            try:
                data = member.read()
            finally:
                with lock:
                    member.close()
            return data if raw is info else _unpacked(data, info)

    return found.sorted(str(file), read, is_zip=True)


def _unpacked(data: bytes, info: zipfile.ZipInfo) -> bytes:
    """Return what a member's bytes hold, and no more than it claims. Raises what the parsers raise."""
    unpacker: bz2.BZ2Decompressor | lzma.LZMADecompressor = bz2.BZ2Decompressor()
    if info.compress_type == zipfile.ZIP_LZMA:  # in a zip: version, 5 as a length, properties; in a file: properties, a size
        unpacker, data = lzma.LZMADecompressor(lzma.FORMAT_ALONE, _DICTIONARY), data[4:9] + b"\xff" * 8 + data[9:]
    found = unpacker.decompress(data, info.file_size)
    if len(found) != info.file_size or zlib.crc32(found) != info.CRC:
        raise zipfile.BadZipFile("it does not have its checksum")
    return found


def _top(paths: list[str], folders: set[str]) -> str:
    """Return `x/` where `zip -r x.zip x` put the whole tree below one name, which is then no class; else nothing."""
    tops = {folder for folder in folders if "/" not in folder}
    if len(tops) != 1 or any("/" not in path and (has_image_name(path) or path == LABELS) for path in paths):
        return ""
    (top,) = tops
    flat = any(path.count("/") == 1 and has_image_name(path) for path in paths)
    return "" if split_name(top) or (flat and f"{top}/{LABELS}" not in paths) else f"{top}/"
