"""The index of a shard, `<shard>.tar.idx`: where each image lies in the tar, so that training reads nothing else.

A 32-byte header (magic, version, row size, samples, bytes of the tar), then one 16-byte row per sample: block (offset / 512),
length and crc32c of its image member, and its label.
"""

import struct

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from pipeline import storage
from pipeline.data.manifest import VERSION, Shard, again
from pipeline.errors import DataError
from pipeline.storage.containment import below

_HEADER = struct.Struct("<8sIIQQ")
MAGIC = b"BGSHARD\n"

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


def index_name(shard: str) -> str:
    """Name of the index of the tar named `shard`."""
    return f"{shard}.idx"


def dump_index(rows: Index, tar_bytes: int) -> bytes:
    """The bytes of an index: `rows` is [samples] of `ROW`."""
    return _HEADER.pack(MAGIC, VERSION, ROW.itemsize, len(rows), tar_bytes) + rows.tobytes()


def load_index(uri: str, shard: Shard, source: str = "", tars: str = "", classes: int | None = None) -> Index:
    """Rows [samples] of `ROW` for one shard at `uri`; `source` and `tars` are those of its manifest, for the advice.

    Raises DataError if it is not the one that the manifest means, or has rows that cannot be in the shard, or labels that are
    not below `classes`.
    """
    from pipeline.data.manifest_claims import wrong_rows

    place = below(uri, index_name(shard.name), uri)
    try:
        data = storage.read_bytes(place)
    except storage.NotFoundError:
        raise DataError(f"{place} is missing: restore it, or {again(uri, source, tars)}") from None
    expected = _HEADER.pack(MAGIC, VERSION, ROW.itemsize, shard.samples, shard.bytes)
    if data[: _HEADER.size] != expected or google_crc32c.value(data) != shard.index_crc32c:
        raise DataError(f"{place} is damaged or of another pack: restore it, or {again(uri, source, tars)}")
    if len(data) != _HEADER.size + ROW.itemsize * shard.samples:
        raise DataError(f"{place} is damaged ({len(data):,} bytes): restore it, or {again(uri, source, tars)}")
    rows = np.frombuffer(data, ROW, offset=_HEADER.size)
    if wrong := wrong_rows(rows, shard.bytes, classes):
        raise DataError(f"{place} is damaged ({wrong}): restore it, or {again(uri, source, tars)}")
    return rows
