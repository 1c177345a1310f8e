"""What a manifest and its indexes claim: their forms, and the bounds that the bytes which are there set.

Everybody who has such a file from somebody else would otherwise ask for memory, and for labels of the network, that a few
bytes claim. `pipeline.data.manifest` imports it when a manifest is read: pydantic takes a while to come up.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pipeline.images.jpeg import MAX_BYTES, MAX_PIXELS
from pipeline.wording import plural

_BLOCK = 512
_LARGEST_TAR = _BLOCK << 32  # that an index's rows can reach
_MAX_SIDE = int(MAX_PIXELS**0.5)
_FREE_PIXELS = 16 << 20  # values of an image; more have to be explained by its file, which may be `_RATIO` times smaller
_RATIO = 500

Crc = Annotated[int, Field(ge=0, lt=1 << 32)]
Count = Annotated[int, Field(ge=0, lt=1 << 62)]


@dataclass(frozen=True)
class ShardClaim:
    """One shard in a manifest."""

    name: Annotated[str, Field(min_length=1)]
    samples: Count
    bytes: Annotated[int, Field(ge=0, le=_LARGEST_TAR)]
    crc32c: Crc
    index_crc32c: Crc


@dataclass(frozen=True)
class Head:
    """What a manifest of any version says of itself."""

    version: int
    source: str
    tars: str


@dataclass(frozen=True, kw_only=True)
class ManifestClaim(Head):
    """A manifest of this version."""

    fingerprint: str
    shards: Annotated[list[ShardClaim], Field(min_length=1)]
    classes: list[str]
    class_counts: list[Count]
    resolution: Annotated[int, Field(ge=1, le=_MAX_SIDE)] | None
    channels: Literal[1, 3]
    tars_from_here: str = ""


def wrong_manifest(manifest: ManifestClaim) -> str:
    """Return what in a manifest cannot be, beside what else it says; empty if all of it can."""
    samples, size = sum(shard.samples for shard in manifest.shards), sum(shard.bytes for shard in manifest.shards)
    crowded = next((shard for shard in manifest.shards if shard.samples * 2 * _BLOCK > shard.bytes), None)
    side = manifest.resolution or 0
    values = side * side * manifest.channels
    if crowded:
        return f"{crowded.name} cannot hold {plural(crowded.samples, 'sample')} in {crowded.bytes:,} bytes"
    if len(manifest.class_counts) != len(manifest.classes) or sum(manifest.class_counts) != samples:
        return f"its counts of {plural(len(manifest.classes), 'class', 'classes')} do not fit {plural(samples, 'sample')}"
    if values > _FREE_PIXELS and values * samples > _RATIO * size:
        return f"{plural(samples, 'image')} of {side} x {side} pixels do not fit into {size:,} bytes"
    return ""


def wrong_rows(rows: NDArray[np.void], tar_bytes: int, classes: int | None) -> str:
    """Return what in the rows of an index, [n], cannot be in a tar of so many bytes; empty if all of it can.

    `classes` is the number of classes, None if it is not known. It is compared once, when a shard is opened.
    """
    if not len(rows):
        return ""
    begins, lengths = rows["block"].astype(np.int64) * _BLOCK, rows["length"].astype(np.int64)
    ends = begins + lengths
    if classes is not None and (label := int(rows["label"].max())) >= classes:
        return f"it has the label {label}, and there are {plural(classes, 'class', 'classes')}"
    if (last := int(ends.max())) > tar_bytes:
        return f"it has an image up to byte {last:,} of a tar that has {tar_bytes:,}"
    if (longest := int(lengths.max())) > MAX_BYTES:
        return f"it has an image of {longest:,} bytes, and {MAX_BYTES:,} are the most"
    if begins[0] < _BLOCK or (begins[1:] < ends[:-1]).any():
        return "its images overlap, or are not in the order of the tar"
    return ""
