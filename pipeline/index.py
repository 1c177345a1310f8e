"""What a folder of shards holds: `manifest.json` for the whole, `<shard>.tar.idx` for each tar.

The index of a shard is a 32-byte header (magic, version, row size, samples, bytes of the tar) and one 16-byte row per
sample: block (offset / 512), length and crc32c of its image member, and its label, so that training reads nothing else.
The manifest carries the crc32c of each tar and of each index, and its fingerprint covers everything but where the tars
are and the note on the source: one number stands for all the data.
"""

import hashlib
import json
import struct
from dataclasses import asdict, dataclass
from typing import Any

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from pipeline import storage
from pipeline.addresses import is_web, split_query
from pipeline.errors import ConfigError, DataError

MANIFEST = "manifest.json"
VERSION = 2
_HEADER = struct.Struct("<8sIIQQ")
_MAGIC = b"BGSHARD\n"

# One row of an index. Offsets are counted in tar's blocks of 512 bytes, so that 32 bits reach 2 TiB.
ROW = np.dtype(
    [
        ("block", "<u4"),
        ("length", "<u4"),
        ("crc", "<u4"),
        ("label", "<u4"),
    ]
)
Index = NDArray[np.void]


@dataclass(frozen=True)
class Shard:
    """One tar."""

    name: str
    """File name, below `Manifest.tars`."""
    samples: int
    bytes: int
    """Size of the tar."""
    crc32c: int
    """Of the whole tar: `biggan index --verify` compares it. Reading compares that of each image, in the index."""
    index_crc32c: int
    """Of the shard's index."""


@dataclass(frozen=True)
class Part:
    """One of the sets that a mixture draws from: consecutive shards of its manifest."""

    uri: str
    """Folder of the indexes."""
    tars: str
    """Folder of the tars."""
    shards: int
    weight: float
    labels: tuple[int, ...]
    """The mixture's label for each of the set's own."""


@dataclass(frozen=True)
class Manifest:
    """A whole split. Sample ids count through the shards in this order, from 0."""

    shards: tuple[Shard, ...]
    classes: tuple[str, ...]
    class_counts: tuple[int, ...]
    """Samples per class."""
    resolution: int | None
    """Height and width of every image, pixels; None where they differ, and are cropped and resampled when they are read."""
    channels: int
    """1 (every image is grey) or 3 (RGB)."""
    tars: str = ""
    """URI of the folder of the tars, where they are not beside the manifest (shards that somebody else wrote)."""
    source: str = ""
    """What was packed and how (a hash), to recognise a finished pack; not part of the fingerprint."""
    parts: tuple[Part, ...] = ()
    """Of a mixture, which is never stored (`pipeline.dataset`)."""

    @property
    def samples(self) -> int:
        """Samples in all shards."""
        return sum(shard.samples for shard in self.shards)

    @property
    def fingerprint(self) -> str:
        """Hash of the content: equal for equal data, whatever it was packed from."""
        content = {name: value for name, value in asdict(self).items() if name not in ("source", "tars", "parts")}
        if self.parts:
            content["parts"] = [(part.shards, part.weight, part.labels) for part in self.parts]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]


def is_ours(document: bytes) -> bool:
    """Return whether a `manifest.json` was written by this program, in any version of it, damaged or not."""
    return b'"format": "biggan shards"' in document


def dump_manifest(manifest: Manifest) -> bytes:
    """The bytes of `manifest.json`."""
    document = {"format": "biggan shards", "version": VERSION, "fingerprint": manifest.fingerprint}
    document |= {"samples": manifest.samples, **asdict(manifest)}
    del document["parts"]
    return (json.dumps(document, indent=1, ensure_ascii=False) + "\n").encode()


def load_manifest(uri: str) -> Manifest:
    """Read and check the manifest of the shards at `uri`. Raises ConfigError where none is, DataError if damaged."""
    address, _ = split_query(uri)
    if uri.startswith("pipe:") or "{" in address or address.endswith((".tar", ".tar.gz", ".tgz")):
        raise ConfigError(f"{uri} names tars: type `biggan index '{uri}' --out FOLDER` once, and then the folder")
    try:
        return _load_manifest(uri)
    except DataError:  # once more: it may have been damaged on its way
        return _load_manifest(uri)


def _load_manifest(uri: str) -> Manifest:
    place = storage.join(uri, MANIFEST)
    try:
        data = storage.read_bytes(place)
    except storage.NotFoundError:
        splits = (
            []
            if is_web(uri)
            else [name for name in storage.names(uri)[:20] if storage.exists(storage.join(uri, name, MANIFEST))]
        )
        hint = f"pack them with `biggan shard SRC {uri}`"
        if splits:
            hint = f"name one of its splits: {', '.join(storage.join(uri, name) for name in splits)}"
        raise ConfigError(f"no shards at {uri}: {hint}") from None
    try:
        document = json.loads(data)
        if document["version"] != VERSION:
            raise ConfigError(
                f"{place} has version {document['version']}, this program reads {VERSION}: type `biggan index {uri}` "
                "or pack again"
            )
        manifest = _parse(document)
        if manifest.fingerprint != document["fingerprint"]:
            raise ValueError("its fingerprint does not fit its content")
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{place} is damaged ({error}): pack again with `biggan shard SRC {uri} --overwrite`") from None
    return manifest


def _parse(document: dict[str, Any]) -> Manifest:
    return Manifest(
        shards=tuple(Shard(**shard) for shard in document["shards"]),
        classes=tuple(document["classes"]),
        class_counts=tuple(document["class_counts"]),
        resolution=document["resolution"],
        channels=document["channels"],
        tars=document["tars"],
        source=document["source"],
    )


def index_name(shard: str) -> str:
    """Name of the index of the tar named `shard`."""
    return f"{shard}.idx"


def dump_index(rows: Index, tar_bytes: int) -> bytes:
    """The bytes of an index: `rows` is [samples] of `ROW`."""
    return _HEADER.pack(_MAGIC, VERSION, ROW.itemsize, len(rows), tar_bytes) + rows.tobytes()


def load_index(uri: str, shard: Shard) -> Index:
    """Rows [samples] of `ROW` for one shard at `uri`. Raises DataError if it is not the one that the manifest means."""
    place = storage.join(uri, index_name(shard.name))
    try:
        data = storage.read_bytes(place)
    except storage.NotFoundError:
        raise DataError(f"{place} is missing: restore it, or pack again with --overwrite") from None
    expected = _HEADER.pack(_MAGIC, VERSION, ROW.itemsize, shard.samples, shard.bytes)
    if data[: _HEADER.size] != expected or google_crc32c.value(data) != shard.index_crc32c:
        raise DataError(f"{place} is damaged or of another pack: restore it, or pack again with --overwrite")
    return np.frombuffer(data, ROW, offset=_HEADER.size)
