"""Shards that have our index and manifest, to be packed again: at another resolution, in another form.

A stretch of a tar is read at once and kept while its images are packed, so that an object store is not asked for each.
"""

import itertools

import google_crc32c
import numpy as np

from pipeline import storage
from pipeline.data.manifest import MANIFEST, Manifest, is_manifest, load_manifest
from pipeline.data.shard_index import Index, load_index
from pipeline.errors import ConfigError, DataError
from pipeline.packing.sources.base import BLOCK_BYTES, BlockCache, Blocks, Ints, Names, Source
from pipeline.packing.sources.layout import split_name, split_order
from pipeline.storage.containment import below
from pipeline.wording import command

_STRETCH = 4 << 20  # bytes read at once


def open_shards(uri: str) -> list[Source]:
    """The shards at `uri`, or those of its splits; none where there is no manifest. Raises DataError for a damaged one."""
    found = storage.names(uri)
    if MANIFEST in found and _is_ours(uri):
        return [_source("", uri)]
    others = [name for name in found if "." not in name and not split_name(name)][:20]  # such as unsupervised
    names = sorted([name for name in found if split_name(name)] + others, key=split_order)
    places = {name: storage.join(uri, name) for name in names}
    splits = {
        name: place for name, place in places.items() if storage.exists(storage.join(place, MANIFEST)) and _is_ours(place)
    }
    return [_source(split, place) for split, place in splits.items()]


def _is_ours(uri: str) -> bool:
    """Whether this manifest.json is one of shards, good or damaged; other programs write files of that name."""
    return is_manifest(storage.read_bytes(storage.join(uri, MANIFEST)))


def foreign(place: str) -> ConfigError:
    """What to do with tars that have no index."""
    return ConfigError(
        f"SRC {place}: tars without a {MANIFEST} of ours are shards, which stay as they are: "
        f"{command('index', place, '--out', 'DST')} indexes them"
    )


def _source(split: str, uri: str) -> Source:
    manifest = load_manifest(uri)
    about = manifest.source, manifest.tars, len(manifest.classes)
    rows = np.concatenate([load_index(uri, shard, *about) for shard in manifest.shards])
    firsts = np.cumsum([0, *(shard.samples for shard in manifest.shards)])
    starts = np.concatenate([*_starts(manifest, rows, firsts), [len(rows)]]).astype(np.int64)
    window = max(1, BLOCK_BYTES // _STRETCH)

    def place(sample: int) -> tuple[int, str]:
        shard = int(np.searchsorted(firsts, sample, side="right")) - 1
        return shard, below(manifest.tars or uri, manifest.shards[shard].name, uri)

    def load(block: int) -> tuple[int, bytes]:
        """(its place in the tar, the bytes)"""
        first, last = rows[starts[block]], rows[starts[block + 1] - 1]
        start, end = 512 * int(first["block"]), 512 * int(last["block"]) + int(last["length"])
        return start, storage.read_range(place(int(starts[block]))[1], start, end)

    def name(i: int) -> str:
        shard, tar = place(i)
        return f"{tar}, sample {i - firsts[shard]}"

    cache = BlockCache(load, 2 * window)

    def read(i: int) -> bytes:
        start, data = cache.get(int(np.searchsorted(starts, i, side="right")) - 1)
        row = rows[i]
        at = 512 * int(row["block"]) - start
        image = data[at : at + int(row["length"])]
        if google_crc32c.value(image) != row["crc"]:
            raise DataError(f"{name(i)} does not have its checksum: restore the tar or pack it again from its source")
        return image

    return Source(
        split=split,
        classes=manifest.classes,
        names=Names(len(rows), name),
        labels=rows["label"].astype(np.int64),
        read=read,
        fingerprint=manifest.fingerprint,
        blocks=Blocks(starts, window),
    )


def _starts(manifest: Manifest, rows: Index, firsts: Ints) -> list[Ints]:
    """First sample of each stretch, for each shard: one begins where the tar has gone on by `_STRETCH` bytes."""
    starts = []
    for first, end in itertools.pairwise(firsts):
        places = rows["block"][first:end].astype(np.int64) * 512 // _STRETCH
        starts.append(first + np.flatnonzero(np.diff(places, prepend=-1)))
    return starts
