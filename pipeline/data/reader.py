"""Encoded images by sample id: whole runs by range requests into bounded memory, each image checked by its crc32c.

`pipeline.data.shard_files` asks the store. What may go wrong with what it gives: bytes that are wrong (read once more, then
the sample is bad), and a shard that is shorter than its index says (what is in front of the cut is good).
"""

import threading
from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import google_crc32c
import numpy as np

from pipeline.data.disk_cache import Cache
from pipeline.data.encoded import Encoded, OpenShard
from pipeline.data.manifest import Manifest
from pipeline.data.mixture import Mixture
from pipeline.data.order import Ints, Order
from pipeline.data.page_cache import PageCache
from pipeline.data.quarantine import BadSampleError
from pipeline.data.shard_files import ShardFiles, fulfil
from pipeline.errors import DataError
from pipeline.wording import command, hide_secrets


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
        self.files = ShardFiles(uri, manifest, requests)
        # Files are read by the thread that needs them, and ahead by the kernel: handing a run over costs more than reading it.
        self._direct = cache is None and self.files.are_local
        self._memory = PageCache()
        self._ahead: OrderedDict[int, None] = OrderedDict()
        """Runs that the kernel has been asked for."""
        self._runs: OrderedDict[int, Future[_Run]] = OrderedDict()
        self._lock = threading.Lock()
        self._fetchers = ThreadPoolExecutor(requests, "fetch")

    @property
    def hedged(self) -> int:
        """Second requests sent because the first was late."""
        return self.files.hedge.sent

    def interrupt(self) -> None:
        """Do not ask again for what could not be read."""
        self.files.interrupt()

    def close(self) -> None:
        """Give up what is being read, and wait until the threads are gone."""
        self.interrupt()
        self._fetchers.shutdown(cancel_futures=True)
        self.files.hedge.close()

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
            raise BadSampleError(run.shard.name, sample, self.files.key(sample), reason, advice)
        return run.shard.encoded(label, data, sample)

    def _in_memory(self, sample: int) -> Encoded | None:
        """An image that is good and need not be waited for."""
        shard = self.files.of(sample)
        block, length, crc, label = shard.rows[sample - shard.first].item()
        data = self._memory.read(shard.path, 512 * block, length)
        if data is None or google_crc32c.value(data) != crc:
            return None
        with self._lock:
            self.bytes_read += length
        return shard.encoded(label, data, sample)

    def _checked(self, run: _Run, sample: int) -> tuple[bytes, str, int]:
        """(image, what is wrong with it or nothing, its shard's own label)."""
        block, length, crc, label = run.shard.rows[sample - run.shard.first].item()
        begin = block * 512 - run.start
        data = run.data[begin : begin + length]
        if len(data) < length:
            expected = self.manifest.shards[self.files.number(run.shard.first)].bytes
            return data, f"the shard has {run.shard.size:,} bytes instead of {expected:,}", label
        return data, "" if google_crc32c.value(data) == crc else "it does not have its checksum", label

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
            fulfil(found, lambda: self._fetch(number, fresh))
        return found

    def _extent(self, number: int) -> tuple[OpenShard, int, int]:
        """Where a run lies: its shard, its first byte and its end, which a cut may have put before its first byte."""
        first, end = self.order.starts[number : number + 2].tolist()
        shard = self.files.of(first)
        blocks, last = shard.rows["block"], end - 1 - shard.first
        stop = 512 * int(blocks[last]) + int(shard.rows["length"][last])
        return shard, 512 * int(blocks[first - shard.first]), min(stop, shard.size)

    def _fetch(self, number: int, fresh: bool) -> _Run:
        shard, start, stop = self._extent(number)
        if start >= stop:
            return _Run(start, b"", shard, fresh)
        key = f"{self.manifest.shards[self.files.number(shard.first)].crc32c:08x}-{start}-{stop}"
        if self._cache and fresh:
            self._cache.drop(key)
        if self._cache and not fresh and (data := self._cache.get(key)) is not None:
            return _Run(start, data, shard)
        data = self.files.read(shard, start, stop)
        if len(data) != stop - start:
            raise DataError(f"{hide_secrets(shard.place)} became shorter while it was read; {shard.part.mend}")
        with self._lock:
            self.bytes_read += len(data)
        if self._cache:
            self._cache.put(key, data)
        return _Run(start, data, shard, fresh)
