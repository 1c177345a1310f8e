"""Encoded images by sample id: whole runs by range requests into bounded memory, each image checked by its crc32c.

What may go wrong on the way: a store that fails for a while (asked again, up to `PATIENCE`), one answer among many that is
late (a second request is sent, and the first to come is taken), bytes that are wrong (read once more, then the sample is
bad), a shard that is shorter than its index says (what is in front of the cut is good), one that is another now (an error).
"""

import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import google_crc32c
import numpy as np

from pipeline import storage
from pipeline.data.disk_cache import Cache
from pipeline.data.encoded import Encoded, OpenShard
from pipeline.data.hedge import Hedge
from pipeline.data.manifest import Manifest, Part
from pipeline.data.mixture import Mixture
from pipeline.data.order import Ints, Order
from pipeline.data.page_cache import PageCache
from pipeline.data.quarantine import BadSampleError
from pipeline.data.shard_index import load_index
from pipeline.data.tar import BLOCK, header_name
from pipeline.errors import DataError, UserError
from pipeline.storage import retry
from pipeline.storage.addresses import store_of
from pipeline.storage.containment import below
from pipeline.wording import command, hide_secrets, printable

PATIENCE = 180.0
"""Seconds for which a failing store is asked again."""

T = TypeVar("T")

_INDEXES = 4096  # of shards, kept at a time: 16 bytes a sample
_KEY = 100  # letters of a sample's name that are shown


@dataclass(frozen=True)
class _Run:
    start: int
    """Place of the first byte in the tar."""
    data: bytes
    shard: OpenShard
    fresh: bool = False
    """Whether it was read because an earlier reading was damaged."""


class Reader:
    """Encoded images of a manifest; threads may share it.

    Args:
        uri: where the manifest was found.
        order: whose runs are read.
        capacity: runs that are kept. `image` reads a run that is not among them, so nothing but speed depends on it.
        requests: range requests in flight: enough to hide a store's latency.
        cache: of runs, on local disk.
    """

    def __init__(
        self,
        uri: str,
        manifest: Manifest,
        order: Order | Mixture,
        *,
        capacity: int,
        requests: int = 8,
        cache: Cache | None = None,
    ) -> None:
        self.manifest, self.order = manifest, order
        self.bytes_read = 0
        """Fetched from the store so far."""
        self._capacity, self._cache = capacity, cache
        self._parts = manifest.parts or (
            Part(
                uri=uri, tars=manifest.tars or uri, shards=len(manifest.shards), weight=1.0, labels=(), source=manifest.source
            ),
        )
        self._part_ends = np.cumsum([part.shards for part in self._parts])
        # Files are read by the thread that needs them, and ahead by the kernel: handing a run over costs more than reading it.
        self._direct = cache is None and all(storage.local_path(part.tars) for part in self._parts)
        self._memory = PageCache()
        self._ahead: OrderedDict[int, None] = OrderedDict()
        """Runs that the kernel has been asked for."""
        self._first: list[int] = np.cumsum([0, *(shard.samples for shard in manifest.shards)]).tolist()
        self._shards: OrderedDict[int, Future[OpenShard]] = OrderedDict()
        self._ready: dict[int, OpenShard] = {}
        """Those of them that have been looked up: to ask a future takes longer than to read an image."""
        self._runs: OrderedDict[int, Future[_Run]] = OrderedDict()
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._fetchers = ThreadPoolExecutor(requests, "fetch")
        self._hedge = Hedge(2 * requests)

    @property
    def hedged(self) -> int:
        """Second requests sent because the first was late."""
        return self._hedge.sent

    def interrupt(self) -> None:
        """Do not ask again for what could not be read."""
        self._closed.set()

    def close(self) -> None:
        """Give up what is being read, and wait until the threads are gone."""
        self.interrupt()
        self._fetchers.shutdown(cancel_futures=True)
        self._hedge.close()

    def expect(self, samples: Ints) -> None:
        """Start reading the runs of these samples, in this order; returns at once."""
        for run in dict.fromkeys(self.order.run_of(samples).tolist()):
            if not self._direct:
                self._run(run)
            elif run not in self._ahead:
                shard, start, stop = self._extent(run)
                self._memory.will_need(shard.path, start, stop)
                self._ahead[run] = None
                if len(self._ahead) > 2 * self._capacity:
                    self._ahead.popitem(last=False)

    def image(self, sample: int) -> Encoded:
        """One image; waits until its run is there.

        Raises BadSampleError if it is damaged, DataError if its shard or index is gone or another one, StorageError.
        """
        if self._direct and (found := self._in_memory(sample)):
            return found
        number = int(np.searchsorted(self.order.starts, sample, side="right")) - 1
        run = (self._runs.get(number) or self._run(number)).result()
        data, reason, label = self._checked(run, sample)
        if reason and not run.fresh:
            run = self._run(number, instead_of=run).result()
            data, reason, label = self._checked(run, sample)
        if reason:
            verify = command("index", run.shard.part.uri, "--verify")
            advice = f"restore the shard from a copy ({verify} names all that are damaged)"
            raise BadSampleError(run.shard.name, sample, self.key(sample), reason, advice)
        return run.shard.encoded(label, data, sample)

    def _in_memory(self, sample: int) -> Encoded | None:
        """An image that is good and need not be waited for."""
        number = self._number(sample)
        shard = self._ready.get(number) or self._shard(number)
        block, length, crc, label = shard.rows[sample - shard.first].item()
        data = self._memory.read(shard.path, 512 * block, length)
        if data is None or google_crc32c.value(data) != crc:
            return None
        with self._lock:
            self.bytes_read += length
        return shard.encoded(label, data, sample)

    def key(self, sample: int) -> str:
        """The name of a sample's image in its shard, without its extension: for people. Its id if it cannot be read."""
        shard = self._shard(self._number(sample))
        header = 512 * (int(shard.rows[sample - shard.first]["block"]) - 1)
        try:
            with retry.once():
                name = header_name(storage.read_range(shard.place, max(header, 0), header + BLOCK))
        except UserError:
            name = ""
        folder, slash, file = name.rpartition("/")
        return printable(folder + slash + file.partition(".")[0])[:_KEY] if name else str(sample)

    def _checked(self, run: _Run, sample: int) -> tuple[bytes, str, int]:
        """(image, what is wrong with it or nothing, its shard's own label)."""
        block, length, crc, label = run.shard.rows[sample - run.shard.first].item()
        begin = block * 512 - run.start
        data = run.data[begin : begin + length]
        if len(data) < length:
            expected = self.manifest.shards[self._number(run.shard.first)].bytes
            return data, f"the shard has {run.shard.size:,} bytes instead of {expected:,}", label
        return data, "" if google_crc32c.value(data) == crc else "it does not have its checksum", label

    def _number(self, sample: int) -> int:
        return bisect_right(self._first, sample) - 1

    def _run(self, number: int, instead_of: _Run | None = None) -> "Future[_Run]":
        fresh = instead_of is not None
        with self._lock:
            found = self._runs.get(number)
            if found is not None and fresh and found.done() and found.result() is instead_of:
                found = None
            if mine := found is None:
                found = Future() if self._direct else self._fetchers.submit(self._fetch, number, fresh)
                self._runs[number] = found
            self._runs.move_to_end(number)  # so that what is expected stays longest
            while len(self._runs) > self._capacity:
                self._runs.popitem(last=False)
        if mine and self._direct:
            _fulfil(found, lambda: self._fetch(number, fresh))
        return found

    def _extent(self, number: int) -> tuple[OpenShard, int, int]:
        """Where a run lies: its shard, its first byte and its end, which a cut may have put before its first byte."""
        first, end = self.order.starts[number : number + 2].tolist()
        shard = self._shard(self._number(first))
        blocks, last = shard.rows["block"], end - 1 - shard.first
        stop = 512 * int(blocks[last]) + int(shard.rows["length"][last])
        return shard, 512 * int(blocks[first - shard.first]), min(stop, shard.size)

    def _fetch(self, number: int, fresh: bool) -> _Run:
        shard, start, stop = self._extent(number)
        if start >= stop:
            return _Run(start, b"", shard, fresh)
        key = f"{self.manifest.shards[self._number(shard.first)].crc32c:08x}-{start}-{stop}"
        if self._cache and fresh:
            self._cache.drop(key)
        if self._cache and not fresh and (data := self._cache.get(key)) is not None:
            return _Run(start, data, shard)
        data = self._read(shard, start, stop)
        if len(data) != stop - start:
            raise DataError(f"{hide_secrets(shard.place)} became shorter while it was read; {shard.part.mend}")
        with self._lock:
            self.bytes_read += len(data)
        if self._cache:
            self._cache.put(key, data)
        return _Run(start, data, shard, fresh)

    def _read(self, shard: OpenShard, start: int, stop: int) -> bytes:
        def ask() -> bytes:
            with retry.once():  # in whatever thread: `_patiently` is the loop
                return storage.read_range(shard.place, start, stop, shard.version)

        local = storage.local_path(shard.place) is not None
        place = hide_secrets(shard.place)
        try:
            return self._patiently(shard.place, ask if local else lambda: self._hedge.ask(ask))
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
            _fulfil(found, lambda: self._look_up(number))
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
        load = partial(load_index, part.uri, expected, source=part.source, tars=part.tars, classes=classes)
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


def _fulfil(promise: "Future[T]", make: Callable[[], T]) -> None:
    try:
        promise.set_result(make())
    except BaseException as error:
        promise.set_exception(error)
