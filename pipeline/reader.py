"""interim"""

import threading
from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import google_crc32c
import numpy as np

from pipeline import storage
from pipeline.errors import DataError
from pipeline.index import Index, Manifest, Part, load_index
from pipeline.mixture import Mixture
from pipeline.order import Ints, Order
from pipeline.quarantine import BadSampleError

_MEND = "restore the file, or pack again with `biggan shard SRC DST --overwrite`"


@dataclass(frozen=True)
class Encoded:
    label: int
    data: bytes
    shard: str
    sample: int


class Reader:
    def __init__(self, uri: str, manifest: Manifest, order: Order | Mixture, *, capacity: int, requests: int = 8) -> None:
        self.manifest, self.order = manifest, order
        self.bytes_read = 0
        self._uri, self._capacity = uri, capacity
        self._parts = manifest.parts or (Part(uri, manifest.tars or uri, len(manifest.shards), 1.0, ()),)
        self._part_ends = np.cumsum([part.shards for part in self._parts])
        self._first = np.cumsum([0, *(shard.samples for shard in manifest.shards)])
        self._indexes: dict[int, Index] = {}
        self._kept: OrderedDict[int, Future[tuple[int, bytes]]] = OrderedDict()
        self._lock = threading.Lock()
        self._ilock = threading.Lock()
        self._requests = ThreadPoolExecutor(requests, "fetch")

    def close(self) -> None:
        self._requests.shutdown(cancel_futures=True)

    def _run(self, run: int) -> "Future[tuple[int, bytes]]":
        with self._lock:
            if run in self._kept:
                self._kept.move_to_end(run)
            else:
                self._kept[run] = self._requests.submit(self._read, run)
                while len(self._kept) > self._capacity:
                    self._kept.popitem(last=False)
            return self._kept[run]

    def expect(self, samples: Ints) -> None:
        for run in dict.fromkeys(self.order.run_of(samples).tolist()):
            self._run(run)

    def key(self, sample: int) -> str:
        return f"{sample:09d}"

    def image(self, sample: int) -> Encoded:
        shard = int(np.searchsorted(self._first, sample, side="right")) - 1
        start, data = self._run(int(np.searchsorted(self.order.starts, sample, side="right")) - 1).result()
        block, length, crc, label = self._indexes[shard][sample - self._first[shard]].item()
        image = data[block * 512 - start : block * 512 - start + length]
        name = self.manifest.shards[shard].name
        if google_crc32c.value(image) != crc:
            raise BadSampleError(name, sample, self.key(sample), "checksum")
        labels = self._part(shard).labels
        return Encoded(labels[label] if labels else label, image, name, sample)

    def _read(self, run: int) -> tuple[int, bytes]:
        first, end = self.order.starts[run : run + 2]
        shard = int(np.searchsorted(self._first, first, side="right")) - 1
        rows = self._index(shard)[first - self._first[shard] : end - self._first[shard]]
        start, stop = 512 * int(rows[0]["block"]), 512 * int(rows[-1]["block"]) + int(rows[-1]["length"])
        try:
            data = storage.read_range(self._place(shard), start, stop)
        except storage.NotFoundError:
            raise DataError(f"{self._place(shard)} is missing; {_MEND}") from None
        self.bytes_read += len(data)
        return start, data

    def _index(self, shard: int) -> Index:
        with self._ilock:
            if shard not in self._indexes:
                self._indexes[shard] = load_index(self._part(shard).uri, self.manifest.shards[shard])
            return self._indexes[shard]

    def _part(self, shard: int) -> Part:
        return self._parts[int(np.searchsorted(self._part_ends, shard, side="right"))]

    def _place(self, shard: int) -> str:
        return storage.join(self._part(shard).tars, self.manifest.shards[shard].name)
