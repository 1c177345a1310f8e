"""What a reader gives, and what it is from: an image as it is stored, and its shard as it was found."""

from dataclasses import dataclass
from typing import NamedTuple

from pipeline.data.manifest import Part
from pipeline.data.shard_index import Index


class Encoded(NamedTuple):
    """One image as it is stored."""

    label: int
    data: bytes
    shard: str
    sample: int


@dataclass(frozen=True, kw_only=True)
class OpenShard:
    """A shard as it was found."""

    place: str
    name: str
    first: int
    """Its first sample."""
    rows: Index
    size: int
    version: str | None
    part: Part
    path: str
    """Of a local file, else empty."""

    def encoded(self, label: int, data: bytes, sample: int) -> Encoded:
        """An image of this shard, with the label that it has in all shards together."""
        return Encoded(self.part.labels[label] if self.part.labels else label, data, self.name, sample)
