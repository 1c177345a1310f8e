"""Index and manifest for WebDataset shards that somebody else wrote: one pass over each tar, many side by side.

A sample is a run of members with one key, as webdataset has it: the key is the path up to the first dot of the file's name,
what follows is the extension. Of each sample the image and the label are taken, the rest stays unread. Nothing is written
before all shards have been read, and the manifest comes last.
"""

import io
import json
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import google_crc32c
import numpy as np
from braceexpand import braceexpand
from PIL import Image

from pipeline import storage
from pipeline.addresses import file_name, split_query
from pipeline.decode import MAX_PIXELS
from pipeline.errors import ConfigError, DataError
from pipeline.index import (
    MANIFEST,
    ROW,
    Manifest,
    Shard,
    dump_index,
    dump_manifest,
    index_name,
)
from pipeline.tar import BLOCK, Member, TarError, members

IMAGES = ("jpg", "jpeg", "png", "webp")
_PIECE = 8 << 20  # bytes of a request
MAX_MEMBER = 256 << 20
_MAX_LABEL = 1_000_000
_KEY = re.compile(r"((?:.*/|)[^.]+)[.]([^/]*)", re.DOTALL)  # webdataset's rule


Progress = Callable[[int, int], None]
"""Told how many more samples and bytes have been read."""


@dataclass(frozen=True)
class Rules:
    """What in a sample is its image, and what its label."""

    label: str | None = None
    """cls, json:PATH, name, name:REGEX or none; None: cls if there is one."""
    image: str | None = None
    """Extension of the image; None: the one of `IMAGES`."""
    classes: tuple[str, ...] | None = None
    """Names by label, for labels that are numbers."""
    skip_incomplete: bool = False
    """Leave out samples without image or label."""

    def __post_init__(self) -> None:
        kind, _, rest = (self.label or "cls").partition(":")
        if kind not in ("cls", "json", "name", "none") or (kind == "json" and not rest) or (kind in ("cls", "none") and rest):
            raise ConfigError(f"--label {self.label}: type cls, json:PATH, name, name:REGEX or none")
        if kind == "name" and rest:
            try:
                if not re.compile(rest).groups:
                    raise ConfigError(f"--label {self.label}: the expression needs a group, as in name:([a-z]+)_")
            except re.error as error:
                raise ConfigError(f"--label {self.label}: {error}") from None


@dataclass
class Scan:
    """One shard, read."""

    name: str
    bytes: int = 0
    crc32c: int = 0
    rows: list[tuple[int, int, int]] = field(default_factory=list)
    """Block, length and crc32c of each image."""
    labels: list[str] = field(default_factory=list)
    keys: set[str] = field(default_factory=set)
    sizes: set[tuple[int, int]] = field(default_factory=set)
    """Widths and heights; more than one is enough to know."""
    grey: bool = True
    skipped: int = 0


def index_shards(
    uri: str, names: list[str], destination: str, rules: Rules, threads: int, progress: Progress
) -> tuple[Manifest, int]:
    """Index the tars `names` in the folder `uri`; write indexes and manifest to `destination`.

    Returns the manifest and how many incomplete samples were left out. `progress` is told samples and bytes as they are
    read. Raises ConfigError or DataError naming shard and key, StorageError; then nothing has been written.
    """
    with ThreadPoolExecutor(threads, "scan") as pool:
        waiting = [pool.submit(scan, uri, name, rules, progress) for name in names]
        try:
            scans = [one.result() for one in waiting]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    if not any(one.rows for one in scans):
        raise DataError(f"the shards at {uri} hold no sample with image and label")
    classes, number = _classes(scans, rules)
    counts = np.zeros(len(classes), np.int64)
    shards, indexes = [], []
    for one in scans:
        labels = [number[text] for text in one.labels]
        counts += np.bincount(labels, minlength=len(classes))
        rows = np.array([(*row, label) for row, label in zip(one.rows, labels, strict=True)], ROW)
        indexes.append(dump_index(rows, one.bytes))
        shards.append(Shard(one.name, len(rows), one.bytes, one.crc32c, google_crc32c.value(indexes[-1])))
    sizes = set().union(*(one.sizes for one in scans))
    width, height = next(iter(sizes))
    manifest = Manifest(
        shards=tuple(shards),
        classes=classes,
        class_counts=tuple(counts.tolist()),
        resolution=width if len(sizes) == 1 and width == height > 0 else None,
        channels=1 if all(one.grey for one in scans) else 3,
        tars="" if destination == uri else uri,
        source="biggan index",
    )
    for one, data in zip(scans, indexes, strict=True):
        storage.write_bytes(storage.join(destination, index_name(one.name)), data)
    storage.write_bytes(storage.join(destination, MANIFEST), dump_manifest(manifest))
    return manifest, sum(one.skipped for one in scans)


def scan(uri: str, name: str, rules: Rules, progress: Progress) -> Scan:
    """Read one tar from end to end."""
    place = storage.join(uri, name)
    found = Scan(name)
    wanted = _wanted(rules)
    try:
        sample: list[Member] = []
        key = None
        for member in members(pieces(place, found, progress), wanted):
            parts = key_of(member.name, place)
            if parts is None:
                continue
            if key is not None and parts[0] != key:
                _take(found, key, sample, rules, place)
                sample = []
            key = parts[0]
            sample.append(Member(parts[1], member.offset, member.size, member.data))
        if key is not None:
            _take(found, key, sample, rules, place)
    except TarError as error:
        raise DataError(f"{place} is damaged: {error}; get it again") from None
    progress(len(found.rows), 0)
    return found


def pieces(place: str, found: Scan, progress: Progress) -> Iterator[bytes]:
    """The bytes of a tar, the next piece on its way while this one is read; size and crc are noted on the way."""
    size = storage.size(place)
    crc = google_crc32c.Checksum()
    with ThreadPoolExecutor(1, "piece") as ahead:
        waiting = ahead.submit(storage.read_range, place, 0, min(size, _PIECE))
        while found.bytes < size:
            piece = waiting.result()
            begin = found.bytes + len(piece)
            if not piece:
                raise DataError(f"{place} became shorter while it was read")
            if begin < size:
                waiting = ahead.submit(storage.read_range, place, begin, min(size, begin + _PIECE))
            if found.bytes == 0 and piece[:2] == b"\x1f\x8b":
                raise ConfigError(f"{place} is compressed, and has no places to jump to: unpack it with gunzip first")
            found.bytes = begin
            crc.update(piece)
            progress(0, len(piece))
            yield piece
    found.crc32c = int.from_bytes(crc.digest())


def key_of(path: str, place: str) -> tuple[str, str] | None:
    """(key, extension), or None for what webdataset passes over. Raises DataError for a path that leads elsewhere."""
    if path.startswith("/") or ".." in path.split("/"):
        raise DataError(f"{place} has a member {path!r}, which points outside: write it again with plain paths")
    if "/" not in path and path.startswith("__") and path.endswith("__"):
        return None
    match = _KEY.fullmatch(path)
    return (match[1], match[2].lower()) if match else None


def _wanted(rules: Rules) -> Callable[[str, int], bool]:
    kind = (rules.label or "cls").partition(":")[0]
    extensions = {rules.image} if rules.image else set(IMAGES)
    extensions |= {kind} if kind in ("cls", "json") else set()

    def wanted(path: str, size: int) -> bool:
        match = _KEY.fullmatch(path)
        return match is not None and match[2].lower() in extensions and size <= MAX_MEMBER

    return wanted


def _take(found: Scan, key: str, sample: list[Member], rules: Rules, place: str) -> None:
    """Add one sample to the scan."""
    where = f"{place}, sample {key}"
    if key in found.keys:
        raise DataError(f"{where}: a second one with this key; write the shard again with one key for each sample")
    found.keys.add(key)
    parts = {member.name: member for member in sample}
    if len(parts) < len(sample):
        raise DataError(f"{where} has two members of one extension: {', '.join(member.name for member in sample)}")
    images = [name for name in parts if name in ((rules.image,) if rules.image else IMAGES)]
    if len(images) > 1:
        raise ConfigError(f"{where} has several images: type --image {images[0]} or {images[1]}")
    text = _label(key, parts, rules, where)
    if not images or text is None:
        if not rules.skip_incomplete:
            have = ", ".join(parts)
            if not images:
                raise ConfigError(f"{where} has no image among {have}: type --image EXTENSION, or --skip-incomplete")
            raise ConfigError(
                f"{where} has no label among {have}: type --label cls, json:PATH, name (its folder), name:REGEX or none, "
                "or --skip-incomplete"
            )
        found.skipped += 1
        return
    image = parts[images[0]]
    if image.data is None:
        raise DataError(f"{where}: an image of {image.size:,} bytes is too large")
    size, grey = _looked_at(image.data, where)
    if len(found.sizes) < 2:
        found.sizes.add(size)
    found.grey &= grey
    found.rows.append((image.offset // BLOCK, image.size, google_crc32c.value(image.data)))
    found.labels.append(text)


def _label(key: str, parts: dict[str, Member], rules: Rules, where: str) -> str | None:
    """The text of a sample's label; None if it has none."""
    kind, _, rest = (rules.label or "cls").partition(":")
    if kind == "none":
        return "0"
    if kind == "name":
        if not rest:
            return key.rpartition("/")[0].rpartition("/")[2] or None
        match = re.search(rest, key)
        return match[1] if match else None
    member = parts.get(kind)
    if member is None or member.data is None:
        return None
    try:
        text = member.data.decode()
        if kind == "cls":
            return text.strip() or None
        node: Any = json.loads(text)
        for step in rest.split("."):
            node = node[int(step) if isinstance(node, list) else step]
    except (KeyError, IndexError, TypeError):
        return None
    except ValueError as error:
        raise DataError(f"{where}: cannot read the label in .{kind}: {error}") from None
    if not isinstance(node, str | int):
        raise ConfigError(f"{where}: --label {rules.label} leads to {json.dumps(node)[:60]}, which is no number and no text")
    return str(node)


def _looked_at(data: bytes, where: str) -> tuple[tuple[int, int], bool]:
    """((width, height), whether it is grey), from its header; (0, 0) where EXIF turns it, so that it is looked at when read."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f"{image.width} x {image.height} pixels are more than {MAX_PIXELS:,}")
            upright = image.getexif().get(0x0112, 1) == 1
            return (image.size if upright else (0, 0)), image.mode in ("1", "L", "I;16")
    except Exception as error:  # Pillow's parsers raise whatever they meet
        reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise DataError(f"{where}: no image ({reason}); remove it, or write the shard again") from None


def _classes(scans: list[Scan], rules: Rules) -> tuple[tuple[str, ...], dict[str, int]]:
    """Names by label, and the label of each text: numbers are labels, other texts are names, sorted."""
    texts = sorted({text for one in scans for text in one.labels})
    if rules.label == "none":
        return rules.classes or ("all",), {"0": 0}
    numbers = [text for text in texts if re.fullmatch(r"\d{1,7}", text)]
    if len(numbers) < len(texts):
        if numbers and rules.classes is None:  # one damaged label would make names of all the others
            odd = next(text for text in texts if text not in numbers)
            name = next(one.name for one in scans if odd in one.labels)
            raise ConfigError(f"{name} has a sample with the label {odd!r}, others have numbers: name all with --classes FILE")
        if rules.classes is None:
            return tuple(texts), {text: label for label, text in enumerate(texts)}
        number = {name: label for label, name in enumerate(rules.classes)}
    else:
        number = {text: int(text) for text in texts}
    count = len(rules.classes) if rules.classes else max(number.values()) + 1
    for text in texts:
        if number.get(text, count) >= min(count, _MAX_LABEL):
            name = next(one.name for one in scans if text in one.labels)
            known = f"--classes has {count} names" if rules.classes else f"labels end at {_MAX_LABEL:,}"
            raise ConfigError(f"{name} has a sample with the label {text!r}, but {known}")
    return rules.classes or tuple(str(label) for label in range(count)), number


def find_shards(uri: str) -> tuple[str, list[str]]:
    """(folder, names below it) of the tars in a folder, of a brace specification, or of one tar.

    Raises ConfigError where there is none, or for what has no places to jump to: pipes and compressed tars.
    """
    if uri.startswith("pipe:"):
        raise ConfigError(f"{uri}: a command's output cannot be read from the middle; name the URI itself (s3://, gs://, ...)")
    address, query = split_query(uri)
    if address.endswith((".gz", ".tgz", ".zst", ".bz2", ".xz")):
        raise ConfigError(f"{uri} is compressed, and has no places to jump to: unpack it first (gunzip)")
    if "{" in address or address.endswith(".tar"):
        folder = address.partition("{")[0].rpartition("/")[0]
        names = [file_name(place[len(folder) :].lstrip("/"), uri) for place in braceexpand(address)]
        folder = folder + query or ("/" if uri.startswith("/") else ".")
        if missing := [name for name in names if not storage.exists(storage.join(folder, name))]:
            raise ConfigError(f"{uri}: {len(missing)} of {len(names)} shards are not there, such as {missing[0]}")
        return folder, names
    names = storage.names(uri)
    tars = [name for name in names if name.endswith(".tar")]
    if not tars:
        compressed = [name for name in names if name.endswith((".tar.gz", ".tgz"))]
        hint = f"{compressed[0]} is compressed: unpack it first (gunzip)" if compressed else "name a folder of .tar files"
        raise ConfigError(f"no shards at {uri}: {hint}")
    return uri.rstrip("/") or "/", tars
