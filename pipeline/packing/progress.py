"""Where a pack stands (`pack.json`, beside its finished shards) and what it came to (`report.json`)."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from pipeline import storage
from pipeline.data.manifest import Manifest, Shard
from pipeline.data.shard_index import load_index
from pipeline.errors import DataError
from pipeline.packing.encode import EncodedSample, PackConfig, as_json
from pipeline.packing.sources.base import Source
from pipeline.storage.containment import below
from pipeline.untrusted import parse
from pipeline.wording import plural

STATE, REPORT = "pack.json", "report.json"


@dataclass(frozen=True)
class Rejected:
    """An image that was left out."""

    name: str
    reason: str


@dataclass(kw_only=True)
class PackState:
    """Everything up to the end of the last finished shard, so that a killed pack goes on behind it."""

    recipe: str
    """What is packed and how: only the same may go on."""
    position: int = 0
    """Images consumed, stored or rejected, in the order of packing."""
    shards: list[Shard] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    """Stored images per class."""
    grey: bool = True
    """Whether all of them are."""
    sides: dict[int, int] = field(default_factory=dict)
    """Of the originals' shorter sides in pixels: how often each occurs."""
    original_bytes: int = 0
    rejected: list[Rejected] = field(default_factory=list)
    seconds: float = 0
    leftovers: list[str] = field(default_factory=list)
    """Files of an earlier pack that have to be removed before this one begins."""

    def add(self, item: EncodedSample | Rejected) -> None:
        """Count one more image."""
        self.position += 1
        if isinstance(item, Rejected):
            self.rejected.append(item)
            return
        self.counts[item.label] += 1
        self.grey &= item.grey
        self.sides[item.side] = self.sides.get(item.side, 0) + 1
        self.original_bytes += item.original_bytes

    @property
    def samples(self) -> int:
        """In finished shards."""
        return sum(shard.samples for shard in self.shards)

    def save(self, uri: str, seconds: float) -> None:
        """Write `pack.json`, with the time that this pack has taken in all."""
        document = asdict(replace(self, seconds=seconds))
        storage.write_bytes(storage.join(uri, STATE), json.dumps(document).encode())


def is_state(document: bytes) -> bool:
    """Return whether a `pack.json` was written by this program, damaged or not."""
    return document.startswith(b'{"recipe": ') and b'"position": ' in document


def is_report(document: bytes) -> bool:
    """Return whether a `report.json` was written by this program, damaged or not."""
    return document.startswith(b'{\n "images": ')


def load_state(uri: str) -> PackState:
    """The state at `uri`, whose shards are whole. Raises DataError where one is not what the state says."""
    place = storage.join(uri, STATE)
    state = parse(PackState, storage.read_bytes(place), f"{place} is damaged", "add --overwrite to pack anew")
    stored = sum(state.counts) if min(state.counts, default=0) >= 0 else -1
    if not state.position - len(state.rejected) == state.samples == stored:
        raise DataError(f"{place} is damaged: its counts contradict each other; add --overwrite to pack anew")
    for shard in state.shards:
        place = below(uri, shard.name, storage.join(uri, STATE))
        if not storage.exists(place) or storage.size(place) != shard.bytes:
            raise DataError(f"{place} is not as it was written: add --overwrite to pack anew")
        load_index(uri, shard, classes=len(state.counts))
    return state


def report(state: PackState, manifest: Manifest, config: PackConfig, source: Source) -> dict[str, Any]:
    """`report.json`: what was packed, how, from what, and what was left out."""
    size = config.resolution or 0
    seconds = max(state.seconds, 1e-9)
    return {
        "images": manifest.samples,
        "classes": dict(zip(manifest.classes, manifest.class_counts, strict=True)),
        "recipe": as_json(config),
        "shards": len(manifest.shards),
        "bytes": sum(shard.bytes for shard in manifest.shards),
        "originals": {
            "bytes": state.original_bytes,
            "shorter_side": _spread(state.sides),
            "smaller_than_resolution": sum(count for side, count in state.sides.items() if side < size),
        },
        "rejected": [asdict(rejected) for rejected in state.rejected],
        "layout": source.layout,
        "passed_over": dict(Counter(kind for _, kind in source.passed)),
        "seconds": round(seconds, 3),
        "images_per_second": round(state.position / seconds, 1),
    }


def read_report(uri: str) -> dict[str, Any]:
    """`report.json` at `uri`."""
    document: dict[str, Any] = json.loads(storage.read_bytes(storage.join(uri, REPORT)))
    return document


def summary(document: dict[str, Any], uri: str) -> list[str]:
    """`report.json` for people, in a few lines."""
    originals, side = document["originals"], document["originals"]["shorter_side"]
    text = f"originals: {originals['bytes'] / 2**20:,.1f} MiB, shorter side {side['min']} to {side['max']} px"
    text += f" (median {side['median']})"
    if small := originals["smaller_than_resolution"]:
        text += f", {small:,} smaller than the resolution"
    lines = [text, f"{document['seconds']:,.1f} s, {document['images_per_second']:,.0f} images/s"]
    if rejected := document["rejected"]:
        first = rejected[0]
        lines.append(
            f"left out {plural(len(rejected), 'image')}, such as {first['name']}; all are in {storage.join(uri, REPORT)}"
        )
    if empty := [name for name, count in document["classes"].items() if count == 0]:
        lines.append(f"{plural(len(empty), 'class has', 'classes have')} no image, such as {empty[0]}")
    return lines


def _spread(counts: dict[int, int]) -> dict[str, int]:
    """Least, middle (the lower one of two) and greatest of values that occur so often."""
    values: Sequence[int] = sorted(counts)
    half, median = (sum(counts.values()) + 1) // 2, values[0]
    for value in values:
        half -= counts[value]
        if half <= 0:
            median = value
            break
    return {"min": values[0], "median": median, "max": values[-1]}
