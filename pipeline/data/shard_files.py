"""The shards of a manifest as they are in a store: each looked up once, and read by ranges.

What may go wrong on the way: a store that fails for a while (asked again, up to `PATIENCE`), one answer among many that is
late (`pipeline.data.hedge`), an index that was damaged on its way (read once more), a shard that is another now (an error).
"""

import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import TypeVar

import numpy as np

from pipeline import storage
from pipeline.data.encoded import OpenShard
from pipeline.data.hedge import Hedge
from pipeline.data.manifest import Manifest, Part
from pipeline.data.shard_index import load_index
from pipeline.data.tar import BLOCK, header_name
from pipeline.errors import DataError, UserError
from pipeline.storage import retry
from pipeline.storage.addresses import store_of
from pipeline.storage.containment import below
from pipeline.wording import hide_secrets, printable

PATIENCE = 180.0
"""Seconds for which a failing store is asked again."""

T = TypeVar("T")

_INDEXES = 4096  # of shards, kept at a time: 16 bytes a sample
_KEY = 100  # letters of a sample's name that are shown


class ShardFiles:
    """Shards of the manifest that was found at `uri`; threads may share it. `requests` are in flight at most."""

    def __init__(self, uri: str, manifest: Manifest, requests: int) -> None:
        self.manifest = manifest
        tars, shards = manifest.tars or uri, len(manifest.shards)
        whole = Part(uri=uri, tars=tars, shards=shards, weight=1.0, labels=(), source=manifest.source)
        self._parts = manifest.parts or (whole,)
        self._part_ends = np.cumsum([part.shards for part in self._parts])
        self.are_local = all(storage.local_path(part.tars) for part in self._parts)
        self._first: list[int] = np.cumsum([0, *(shard.samples for shard in manifest.shards)]).tolist()
        self._shards: OrderedDict[int, Future[OpenShard]] = OrderedDict()
        self._ready: dict[int, OpenShard] = {}
        """Those of them that have been looked up: to ask a future takes longer than to read an image."""
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self.hedge = Hedge(2 * requests)

    def interrupt(self) -> None:
        """Do not ask again for what could not be read."""
        self._closed.set()

    def number(self, sample: int) -> int:
        """Which shard a sample is in."""
        return bisect_right(self._first, sample) - 1

    def of(self, sample: int) -> OpenShard:
        """Return the shard of a sample. Raises DataError if it or its index is gone or another one, StorageError."""
        number = self.number(sample)
        return self._ready.get(number) or self._shard(number)

    def key(self, sample: int) -> str:
        """The name of a sample's image in its shard, without its extension: for people. Its id if it cannot be read."""
        shard = self.of(sample)
        header = 512 * (int(shard.rows[sample - shard.first]["block"]) - 1)
        try:
            with retry.once():
                name = header_name(storage.read_range(shard.place, max(header, 0), header + BLOCK))
        except UserError:
            name = ""
        folder, slash, file = name.rpartition("/")
        return printable(folder + slash + file.partition(".")[0])[:_KEY] if name else str(sample)

    def read(self, shard: OpenShard, start: int, stop: int) -> bytes:
        """Bytes [start, stop) of a shard. Raises DataError if it is gone or another one, StorageError."""

        def ask() -> bytes:
            with retry.once():  # in whatever thread: `_patiently` is the loop
                return storage.read_range(shard.place, start, stop, shard.version)

        local = storage.local_path(shard.place) is not None
        place = hide_secrets(shard.place)
        try:
            return self._patiently(shard.place, ask if local else lambda: self.hedge.ask(ask))
        except storage.NotFoundError:
            raise DataError(f"{place} is missing; {shard.part.mend}") from None
        except storage.ChangedError:
            raise DataError(f"{place} is another file than when this process first read it; {shard.part.mend}") from None

    def _patiently(self, place: str, ask: Callable[[], T]) -> T:
        """Ask until there is an answer, or `PATIENCE` is spent."""
        return retry.patiently(ask, store_of(place), PATIENCE, stop=self._closed, changes=3)

    def _shard(self, number: int) -> OpenShard:
        """A shard's index and state, looked up once."""
        with self._lock:
            found = self._shards.get(number)
            if mine := found is None:
                found = self._shards[number] = Future()
            self._shards.move_to_end(number)
            while len(self._shards) > _INDEXES:
                self._ready.pop(self._shards.popitem(last=False)[0], None)
        if mine:
            fulfil(found, lambda: self._look_up(number))
        shard = found.result()
        with self._lock:
            if number in self._shards:  # another thread may have let go of it
                self._ready[number] = shard
        return shard

    def _look_up(self, number: int) -> OpenShard:
        expected = self.manifest.shards[number]
        part = self._parts[int(np.searchsorted(self._part_ends, number, side="right"))]
        place = below(part.tars, expected.name, part.uri)
        classes = len(part.labels) or len(self.manifest.classes)
        load = partial(load_index, part.uri, expected, part.source, part.tars, classes)
        try:
            size, version = self._patiently(place, lambda: storage.head(place))
        except storage.NotFoundError:
            raise DataError(f"{hide_secrets(place)} is missing; {part.mend}") from None
        try:
            rows = self._patiently(part.uri, load)
        except DataError:  # once more: it may have been damaged on its way
            rows = self._patiently(part.uri, load)
        return OpenShard(
            place=place,
            name=expected.name,
            first=self._first[number],
            rows=rows,
            size=size,
            version=version,
            part=part,
            path=str(storage.local_path(place) or ""),
        )


def fulfil(promise: "Future[T]", make: Callable[[], T]) -> None:
    """Make what has been promised; whoever waits is told a failure, too."""
    try:
        promise.set_result(make())
    except BaseException as error:
        promise.set_exception(error)
