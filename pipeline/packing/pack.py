"""Images to WebDataset shards with an index: what `biggan shard` does to one split.

The samples are shuffled with a fixed seed (a folder comes sorted by class, and each shard would hold one class). Equal
input gives equal bytes. The manifest is written last: without it the tars are nobody's. `pack.json` is written first and
after each shard, and goes when the manifest is there: a killed pack goes on behind its last finished shard.

Only files that one of the two lists are removed or replaced. Others are left alone, and refused where they are in the way.
"""

import contextlib
import hashlib
import io
import json
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import google_crc32c
import numpy as np

from pipeline import storage
from pipeline.data.manifest import MANIFEST, Manifest, Shard, dump_manifest, load_manifest
from pipeline.data.shard_index import ROW, dump_index
from pipeline.errors import ConfigError, DataError, UserError
from pipeline.packing.encode import EncodedSample, ImageError, PackConfig, as_json, encoded
from pipeline.packing.pack_files import files, inventory, remove, shard_files
from pipeline.packing.progress import REPORT, STATE, PackState, Rejected, load_state, report
from pipeline.packing.sources.base import Ints, Source
from pipeline.storage.ownership import refuse_foreign
from pipeline.wording import plural

__all__ = ["EncodedSample", "PackConfig", "pack", "packed", "write_shards"]

_CHUNK = 16  # images that a thread encodes at a time; two chunks per thread may wait for the shard


def packed(source: Source, uri: str, config: PackConfig, overwrite: bool = False) -> Manifest | None:
    """The manifest at `uri` if it is what packing `source` would write; None if packing has to be done, or to go on.

    Raises ConfigError if a label of `source` has no class, or if `uri` holds anything else. With `overwrite` it may hold
    another pack, and files that are not in the way.
    """
    _check_labels(source)
    ours, _ = inventory(uri)
    if not ours.intersection((MANIFEST, STATE)):
        refuse_foreign(uri, uri, "name another DST")
    if overwrite:
        return None
    if MANIFEST in ours:
        manifest = load_manifest(uri)
        if manifest.source != _recipe(source, config):
            raise ConfigError(f"{uri} holds other shards, or the source has changed: add --overwrite to replace them")
        if STATE in ours:
            remove(uri, [STATE])  # killed between the last two steps
        return manifest
    if STATE in ours and load_state(uri).recipe != _recipe(source, config):
        raise ConfigError(
            f"{uri} holds the beginning of another pack, or the source has changed since: add --overwrite to replace it"
        )
    return None


def pack(source: Source, uri: str, config: PackConfig, progress: Callable[[int], None], resume: bool = True) -> Manifest:
    """Write `source` to `uri` in place of shards that an earlier pack wrote there.

    `progress` is told how many images an earlier pack has done (0 if none), then how many more are done.
    With `resume` it goes on behind the finished shards of an earlier pack of the same, to the same bytes.
    Raises DataError for an image that cannot be read, ConfigError for one that does not fit, StorageError if `uri`
    fails; finished shards stay then, without a manifest, for the next try. Raises ConfigError before anything is written
    if files of somebody else are in the way.
    """
    import webdataset.writer  # noqa: F401  imports torch: seconds that are no part of packing

    _check_labels(source)
    recipe = _recipe(source, config)
    state = PackState(recipe=recipe, counts=[0] * len(source.classes))
    ours, _ = inventory(uri)
    if resume and STATE in ours and MANIFEST not in ours:
        earlier = load_state(uri)
        state = earlier if earlier.recipe == recipe and len(earlier.counts) == len(source.classes) else state
    began = time.monotonic() - state.seconds
    done = list(state.shards)

    def save() -> None:
        done[:] = state.shards
        state.save(uri, time.monotonic() - began)

    state.leftovers = sorted(ours - {MANIFEST, STATE, *files(done)})
    save()  # before the manifest goes, which lists them as well
    try:
        remove(uri, (ours & {MANIFEST}).union(state.leftovers))
        state.leftovers = []
        progress(state.position)
        _write(_encoded(source, config, state.position, progress), uri, state, config.shard_bytes, save)
        state.seconds = time.monotonic() - began
        return _finish(uri, state, source.classes, config=config, recipe=recipe, source=source)
    except UserError as error:
        error.args = (f"{error}{_what_stays(uri, done)}",)
        raise


def write_shards(samples: Iterator[EncodedSample], uri: str, classes: tuple[str, ...], config: PackConfig) -> Manifest:
    """Write `samples` to `uri` in their order, in place of shards that are there; if it fails, what was written is removed."""
    state = PackState(recipe="", counts=[0] * len(classes))
    remove(uri, inventory(uri)[0])
    try:
        _write(samples, uri, state, config.shard_bytes, lambda: None)
        return _finish(uri, state, classes, config, "")
    except BaseException:
        remove(uri, {MANIFEST, *files(state.shards), *shard_files(len(state.shards))})
        raise


def _write(
    items: Iterable[EncodedSample | Rejected], uri: str, state: PackState, shard_bytes: int, save: Callable[[], None]
) -> None:
    """Write `items` behind the shards of `state`. A shard is in memory until it is full; then `save` is told."""
    tar = _Tar(state.samples)
    try:
        for item in items:
            state.add(item)
            if isinstance(item, EncodedSample):
                tar.add(item)
            if tar.bytes >= shard_bytes:
                state.shards.append(tar.write(uri, len(state.shards)))
                save()
                tar = _Tar(state.samples)
        if tar.rows:  # the last one may be small: at least a sample, never none
            state.shards.append(tar.write(uri, len(state.shards)))
            save()
    finally:
        tar.close()


def _finish(
    uri: str, state: PackState, classes: tuple[str, ...], config: PackConfig, recipe: str, source: Source | None = None
) -> Manifest:
    if not state.shards:
        why = "".join(f"; {bad.name}: {bad.reason}" for bad in state.rejected[:1])
        raise ConfigError(f"{uri}: there is no image to pack{why}")
    manifest = Manifest(
        shards=tuple(state.shards),
        classes=classes,
        class_counts=tuple(state.counts),
        resolution=config.resolution,
        channels=1 if state.grey else 3,
        source=recipe,
    )
    if source is not None:
        text = json.dumps(report(state, manifest, config, source), indent=1, ensure_ascii=False) + "\n"
        storage.write_bytes(storage.join(uri, REPORT), text.encode(errors="backslashreplace"))
    storage.write_bytes(storage.join(uri, MANIFEST), dump_manifest(manifest))
    remove(uri, [STATE])
    return manifest


class _Tar:
    """A shard in the making. Keys are sample ids, so that nobody has to parse names."""

    def __init__(self, first: int) -> None:
        from webdataset.writer import TarWriter  # imports torch

        self.rows: list[tuple[int, int, int, int]] = []
        self._first, self._buffer = first, io.BytesIO()
        self._tar = TarWriter(self._buffer, mtime=0, user="", group="")

    @property
    def bytes(self) -> int:
        """So far, without the end of the tar."""
        return int(self._tar.tarstream.offset)

    def add(self, sample: EncodedSample) -> None:
        # A tar member is a header block and its data. The writer sorts by extension: cls, jpg, png, webp.
        block = self.bytes // 512 + 3
        self.rows.append((block, len(sample.image), google_crc32c.value(sample.image), sample.label))
        key = f"{self._first + len(self.rows) - 1:09d}"
        self._tar.write({"__key__": key, "cls": str(sample.label).encode(), sample.extension: sample.image})

    def close(self) -> None:
        """The writer complains where it is left open."""
        self._tar.close()

    def write(self, uri: str, number: int) -> Shard:
        """Write tar and index, whole."""
        self.close()
        (name, index_file), data = shard_files(number), self._buffer.getvalue()
        index = dump_index(np.array(self.rows, ROW), len(data))
        storage.write_bytes(storage.join(uri, name), data)
        storage.write_bytes(storage.join(uri, index_file), index)
        return Shard(name, len(self.rows), len(data), google_crc32c.value(data), google_crc32c.value(index))


def _recipe(source: Source, config: PackConfig) -> str:
    """How, for people; and a hash of what and how."""
    content = repr((source.fingerprint, source.classes, sorted(as_json(config).items())))
    return f"{config} ({hashlib.sha256(content.encode()).hexdigest()[:32]})"


def _check_labels(source: Source) -> None:
    wrong = np.flatnonzero((source.labels < 0) | (source.labels >= len(source.classes)))
    if len(wrong):
        label, name = source.labels[wrong[0]], source.names[int(wrong[0])]
        raise ConfigError(
            f"{name} has the label {label}, and there are {plural(len(source.classes), 'class', 'classes')}: "
            "fix it, or pack another split"
        )


def _what_stays(uri: str, done: list[Shard]) -> str:
    """For the end of a failure's message, after what cannot be used again is removed."""
    with contextlib.suppress(UserError):  # the store may be what failed; the next try clears as well
        remove(uri, inventory(uri)[0] - ({STATE, *files(done)} if done else set()))
    if not done:
        return ""
    samples = sum(shard.samples for shard in done)
    many = f"{plural(len(done), 'finished shard')} ({plural(samples, 'image')})"
    return f"; {many} stay, and the same command continues after them"


def _encoded(
    source: Source, config: PackConfig, start: int, progress: Callable[[int], None]
) -> Iterator[EncodedSample | Rejected]:
    """The samples from place `start` of the shuffled order on, encoded by threads, a few at a time.

    Pillow releases the interpreter lock, so that processes would be no faster (and would need the source copied).
    """
    order = _order(source, config.seed)
    workers = config.workers or len(os.sched_getaffinity(0))
    waiting: deque[Future[list[EncodedSample | Rejected]]] = deque()
    pool = ThreadPoolExecutor(workers, "encode")

    def encode(chunk: Ints) -> list[EncodedSample | Rejected]:
        return [_sample(source, i, config) for i in chunk.tolist()]

    try:
        for first in range(start, len(order), _CHUNK):
            waiting.append(pool.submit(encode, order[first : first + _CHUNK]))
            while len(waiting) > (2 * workers if first + _CHUNK < len(order) else 0):
                items = waiting.popleft().result()
                yield from items
                progress(len(items))
    finally:
        pool.shutdown(cancel_futures=True)


def _sample(source: Source, i: int, config: PackConfig) -> EncodedSample | Rejected:
    try:
        return encoded(source, i, config)
    except (DataError, ConfigError) as error:
        if not config.skip_bad:
            raise
        return Rejected(source.names[i], error.reason if isinstance(error, ImageError) else str(error))


def _order(source: Source, seed: int) -> Ints:
    """All images, shuffled. Where they lie in blocks, blocks are shuffled, and images within a window of blocks."""
    randoms = np.random.Philox(key=seed).random_raw(len(source.labels))
    if source.blocks is None:
        return np.argsort(randoms, kind="stable")
    lengths = np.diff(source.blocks.starts)
    places = np.argsort(np.argsort(np.random.Philox(key=seed, counter=1 << 128).random_raw(len(lengths)), kind="stable"))
    return np.lexsort((randoms, np.repeat(places // source.blocks.window, lengths)))
