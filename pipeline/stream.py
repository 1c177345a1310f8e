"""Micro-batches of decoded images, from the shards at a URI, in the order of `pipeline.order`.

A thread reads ahead: whole runs by range requests into bounded memory, each member checked against its crc32c, decoded
by a few threads (the decoders release the interpreter lock), put into a bounded queue. Its failures surface in
`__next__`.
"""

import io
import itertools
import queue
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Self

import google_crc32c
import numpy as np
import simplejpeg
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from pipeline import storage
from pipeline.errors import ConfigError, DataError
from pipeline.index import Index, Manifest, load_index
from pipeline.order import LANES, WINDOW, Ints, Order, flips

_REQUESTS = 8  # range requests in flight: enough to hide a store's latency at runs of about 1 MiB
_THREAD_BYTES = 8 << 10  # where a sample is smaller, threads lose more to the interpreter lock than they gain
_MEND = "restore the file, or pack again with `biggan shard SRC DST --overwrite`"


@dataclass(frozen=True)
class DataConfig:
    """Where the images are and how they are read."""

    uri: str
    """Folder of one split: `manifest.json`, tars and their indexes. A path, file:// or s3://."""
    flip: bool = False
    """Mirror half of the images, chosen anew in every epoch."""
    decode_threads: int = 2
    """Threads that decode, per process."""
    read_ahead: int = 4
    """Micro-batches that are kept ready, per process."""

    def __post_init__(self) -> None:
        for name in ("decode_threads", "read_ahead"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least 1")


@dataclass(frozen=True)
class MicroBatch:
    """m consecutive samples of a global batch. Nothing is mirrored or scaled yet: that belongs on the device."""

    images: Tensor
    """uint8 [m, C, H, W], as stored (not flipped); pinned where CUDA is."""
    labels: Tensor
    """int64 [m]."""
    samples: Tensor
    """int64 [m]: sample ids, counted through the shards."""
    epochs: Tensor
    """int64 [m]."""
    positions: Tensor
    """int64 [m]: samples consumed before each one, since the start of training."""
    flips: Tensor
    """bool [m]: which images the consumer has to mirror; all False without `DataConfig.flip`."""


class Stream:
    """Endless iterator of one rank's micro-batches.

    Global batch t holds the positions [t * B, (t + 1) * B), sorted by lane; rank r's micro-step a takes its slice
    [a * W * m + r * m, + m). So neither W nor m changes what a global batch holds, or which samples stand side by side.

    Args:
        config: where and how.
        manifest: of `config.uri`.
        seed: of the run.
        global_batch: B, samples per update over all ranks and micro-steps.
        micro_batch: m.
        rank: r, of `world_size` W.
        position: samples consumed before the first batch; the whole state of a stream.

    Raises ConfigError if B is not a multiple of W * m. `__next__` raises DataError if the shards are not what their
    index says, StorageError if they cannot be read.
    """

    def __init__(
        self,
        config: DataConfig,
        manifest: Manifest,
        *,
        seed: int,
        global_batch: int,
        micro_batch: int,
        rank: int,
        world_size: int,
        position: int = 0,
    ) -> None:
        if global_batch % (micro_batch * world_size):
            raise ConfigError(
                f"a global batch of {global_batch} cannot be shared by {world_size} ranks in micro-batches of "
                f"{micro_batch}: it must be a multiple of {micro_batch * world_size}"
            )
        self.waited = 0.0
        """Seconds that the consumer has spent blocked in `__next__`."""
        self._order = Order(manifest.shards, seed)
        self._config, self._manifest = config, manifest
        self._batch, self._micro, self._rank, self._world = global_batch, micro_batch, rank, world_size
        self._runs = _Runs(config.uri, manifest, self._order, capacity=self._open_runs())
        self._queue: queue.Queue[MicroBatch | BaseException] = queue.Queue(config.read_ahead)
        self._failure: BaseException | None = None
        self._stop = threading.Event()
        # A daemon, so that the interpreter does not wait for it, and ended by the finaliser at exit: a daemon that is
        # still inside torch when the interpreter ends aborts the process.
        self._thread = threading.Thread(target=self._produce, args=(position,), name="read-ahead", daemon=True)
        self._end = weakref.finalize(self, _end, self._stop, self._thread)
        self._thread.start()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> MicroBatch:
        if self._stop.is_set():
            raise RuntimeError("the stream is closed")
        if self._failure is None:
            began = time.perf_counter()
            item = self._queue.get()
            self.waited += time.perf_counter() - began
            if isinstance(item, MicroBatch):
                return item
            self._failure = item
        raise self._failure

    @property
    def bytes_read(self) -> int:
        """Bytes of shards fetched so far."""
        return self._runs.bytes_read

    def close(self) -> None:
        """Stop reading ahead and wait until the threads are gone."""
        self._end()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _open_runs(self) -> int:
        """Runs that this rank draws from at a time: a window (and what it cuts) in each of its lanes."""
        slices = self._batch // (self._micro * self._world)
        lanes = slices * (-(-self._micro * LANES // self._batch) + 2)
        return (min(lanes, LANES) + 1 if self._batch >= LANES else LANES + 1) * (WINDOW + 2)

    def _produce(self, position: int) -> None:
        try:
            with ThreadPoolExecutor(self._config.decode_threads, "decode") as pool:
                for batch in self._batches(position, pool):
                    if not self._offer(batch):
                        return
        except BaseException as error:
            self._offer(error)
        finally:
            self._runs.close()

    def _offer(self, item: MicroBatch | BaseException) -> bool:
        while not self._stop.is_set():
            try:
                self._queue.put(item, timeout=0.1)
                return True
            except queue.Full:
                pass
        return False

    def _batches(self, position: int, pool: ThreadPoolExecutor) -> Iterator[MicroBatch]:
        for start in itertools.count(position, self._batch):
            epochs, samples = self._order.batch(start, self._batch)
            by_lane = np.argsort(self._order.lanes(start, self._batch), kind="stable")
            mirrored = flips(self._order.seed, epochs, samples) & self._config.flip
            for first in range(self._rank * self._micro, self._batch, self._world * self._micro):
                chosen = by_lane[first : first + self._micro]
                images, labels = _decoded(self._runs, samples[chosen], pool, self._config.decode_threads)
                yield MicroBatch(
                    images=images,
                    labels=torch.from_numpy(labels),
                    samples=torch.from_numpy(samples[chosen]),
                    epochs=torch.from_numpy(epochs[chosen]),
                    positions=torch.from_numpy(start + chosen.astype(np.int64)),
                    flips=torch.from_numpy(mirrored[chosen]),
                )


def _end(stop: threading.Event, thread: threading.Thread) -> None:
    stop.set()
    thread.join()


def load_all(config: DataConfig, manifest: Manifest) -> tuple[Tensor, Tensor]:
    """Every image, uint8 [N, C, H, W], and label, int64 [N], by sample id: for sets that fit in memory."""
    order = Order(manifest.shards, seed=0)
    runs = _Runs(config.uri, manifest, order, capacity=2)
    shape = (manifest.samples, manifest.channels, manifest.resolution, manifest.resolution)
    images = torch.empty(shape, dtype=torch.uint8)
    labels = torch.empty(manifest.samples, dtype=torch.int64)
    with ThreadPoolExecutor(config.decode_threads, "decode") as pool:
        for chunk in torch.arange(manifest.samples).split(1024):
            pixels, classes = _decoded(runs, chunk.numpy(), pool, config.decode_threads)
            images[chunk], labels[chunk] = pixels, torch.from_numpy(classes)
    runs.close()
    return images, labels


class _Runs:
    """The runs that were used last, as they stand in their shards; at most `capacity` of them are kept."""

    def __init__(self, uri: str, manifest: Manifest, order: Order, capacity: int) -> None:
        self.manifest = manifest
        self.bytes_read = 0
        self._uri, self._order, self._capacity = uri, order, capacity
        self._first = np.cumsum([0, *(shard.samples for shard in manifest.shards)])
        self._indexes: dict[int, Index] = {}
        self._kept: OrderedDict[int, tuple[int, bytes]] = OrderedDict()
        self._lock = threading.Lock()
        self._requests = ThreadPoolExecutor(_REQUESTS, "fetch")

    def close(self) -> None:
        self._requests.shutdown()

    def fetch(self, samples: Ints) -> None:
        """Have the runs of `samples` in memory: those that are missing are read side by side."""
        wanted = np.unique(self._order.run_of(samples)).tolist()
        for run in wanted:
            if run in self._kept:
                self._kept.move_to_end(run)
        missing = [run for run in wanted if run not in self._kept]
        for run, data in zip(missing, self._requests.map(self._read, missing), strict=True):
            self._kept[run] = data
            self.bytes_read += len(data[1])
        while len(self._kept) > max(self._capacity, len(wanted)):
            self._kept.popitem(last=False)

    def image(self, sample: int) -> tuple[int, bytes, str]:
        """(label, encoded image, name for messages) of a sample whose run is here. Raises DataError on a bad crc."""
        shard = int(np.searchsorted(self._first, sample, side="right")) - 1
        block, length, crc, label = self._indexes[shard][sample - self._first[shard]].item()
        start, data = self._kept[int(np.searchsorted(self._order.starts, sample, side="right")) - 1]
        image = data[block * 512 - start : block * 512 - start + length]
        if google_crc32c.value(image) != crc:
            raise DataError(f"{self._place(shard)}: sample {sample} does not have its checksum; {_MEND}")
        return label, image, f"{self.manifest.shards[shard].name}, sample {sample}"

    def _read(self, run: int) -> tuple[int, bytes]:
        first, end = self._order.starts[run : run + 2]
        shard = int(np.searchsorted(self._first, first, side="right")) - 1
        rows = self._index(shard)[first - self._first[shard] : end - self._first[shard]]
        start, stop = 512 * int(rows[0]["block"]), 512 * int(rows[-1]["block"]) + int(rows[-1]["length"])
        try:
            data = storage.read_range(self._place(shard), start, stop)
        except storage.NotFoundError:
            raise DataError(f"{self._place(shard)} is missing; {_MEND}") from None
        if len(data) != stop - start:
            raise DataError(f"{self._place(shard)} ends before byte {stop:,}; {_MEND}")
        return start, data

    def _index(self, shard: int) -> Index:
        with self._lock:
            if shard not in self._indexes:
                expected = self.manifest.shards[shard]
                try:
                    found = storage.size(self._place(shard))
                except storage.NotFoundError:
                    raise DataError(f"{self._place(shard)} is missing; {_MEND}") from None
                if found != expected.bytes:
                    raise DataError(f"{self._place(shard)} has {found:,} bytes instead of {expected.bytes:,}; {_MEND}")
                self._indexes[shard] = load_index(self._uri, expected)
            return self._indexes[shard]

    def _place(self, shard: int) -> str:
        return storage.join(self.manifest.tars or self._uri, self.manifest.shards[shard].name)


def _decoded(runs: _Runs, samples: Ints, pool: ThreadPoolExecutor, threads: int) -> tuple[Tensor, Ints]:
    """Images uint8 [n, C, H, W] (pinned where CUDA is) and labels int64 [n] of `samples`."""
    runs.fetch(samples)
    size, channels = runs.manifest.resolution, runs.manifest.channels
    images = torch.empty(len(samples), channels, size, size, dtype=torch.uint8, pin_memory=torch.cuda.is_available())
    labels = np.empty(len(samples), np.int64)
    pixels = images.numpy()

    def decode(part: Ints) -> None:
        for i in part:
            labels[i], data, name = runs.image(int(samples[i]))
            pixels[i] = _pixels(data, size, channels, name)

    each = sum(shard.bytes for shard in runs.manifest.shards) // runs.manifest.samples
    parts = threads if each >= _THREAD_BYTES else 1
    for done in [pool.submit(decode, part) for part in np.array_split(np.arange(len(samples)), parts)]:
        done.result()
    return images, labels


def _pixels(data: bytes, size: int, channels: int, name: str) -> NDArray[np.uint8]:
    """An encoded image as uint8 [C, H, W]."""
    try:
        if data[:2] == b"\xff\xd8":
            pixels = np.asarray(simplejpeg.decode_jpeg(data, "GRAY" if channels == 1 else "RGB"))
        else:
            image = Image.open(io.BytesIO(data), formats=("PNG",))
            mode = "L" if channels == 1 else "RGB"
            pixels = np.asarray(image if image.mode == mode else image.convert(mode))
    except (OSError, ValueError, SyntaxError) as error:
        raise DataError(f"{name} is no image ({error}); pack again with `biggan shard SRC DST --overwrite`") from None
    if pixels.shape[:2] != (size, size):
        raise DataError(f"{name} is {pixels.shape[1]} x {pixels.shape[0]} instead of {size} x {size}; {_MEND}")
    return pixels.reshape(size, size, channels).transpose(2, 0, 1)
