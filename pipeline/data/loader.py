"""Micro-batches of decoded images, from the shards at a URI, in the order of `pipeline.data.order`.

A thread looks ahead in the order: `pipeline.data.reader` fetches runs for it, `pipeline.data.collate` decodes, and what is
ready waits in a bounded queue. Its failures surface in `__next__`.
"""

import math
import queue
import threading
import time
import weakref
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.bounds import Bounds, check_bounds
from pipeline.data.collate import Collator, Pending
from pipeline.data.disk_cache import Cache
from pipeline.data.manifest import Manifest
from pipeline.data.mixture import make_order
from pipeline.data.order import LANES, Order, OrderRule, flips
from pipeline.data.quarantine import Quarantine
from pipeline.data.reader import Reader
from pipeline.data.sampler import RankSampler, SamplePlan
from pipeline.errors import ConfigError

_FETCH_AHEAD = 4  # micro-batches whose runs are asked for before they are decoded
_DECODE_AHEAD = 2  # so that no thread waits for the slowest one of a micro-batch


@dataclass(frozen=True)
class PartConfig:
    """One of several sets that are mixed."""

    uri: str
    """As `data.uri`."""
    weight: Annotated[float, Bounds(gt=0, lt=math.inf)] = 1.0
    """Its share of the images is this, divided by the sum over all sets."""

    def __post_init__(self) -> None:
        check_bounds(self)


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where the images are and how they are read."""

    uri: str = ""
    """Folder of one split: `manifest.json`, tars and their indexes. A path or any URI."""
    mix: dict[str, PartConfig] = field(default_factory=dict)
    """Instead of `uri`, of a preset as well: sets by name, each with `uri` and `weight`. Classes of the same name are one."""
    allow: list[str] = field(default_factory=list)
    """Other stores (`s3://BUCKET`, `http://HOST`) or local folders where a manifest may say that its tars are."""
    lanes: Annotated[int, Bounds(ge=1)] = LANES
    """Places in the data that a batch draws from. With more ranks than lanes, several ranks read the same bytes."""
    crop: Annotated[int | None, Bounds(ge=1)] = None
    """Keep the centred square of so many pixels of each image, as is usual for faces. An image that is smaller is bad."""
    resolution: Annotated[int | None, Bounds(ge=1)] = None
    """Crop (the largest centred square) and resample (Lanczos) to this many pixels while reading. Default: as stored."""
    flip: bool = False
    """Mirror half of the images, chosen anew in every epoch."""
    decode_threads: Annotated[int, Bounds(ge=1)] = 2
    """Threads that decode, per process."""
    read_ahead: Annotated[int, Bounds(ge=1)] = 4
    """Micro-batches that are kept ready, per process."""
    cache: str | None = None
    """Folder on a local disk that keeps what has been read, in `biggan-cache/`, for all ranks of a node. Default: none."""
    cache_gb: Annotated[float, Bounds(gt=0)] = 100.0
    """Size that it may have; what was used least recently goes first."""
    bad_fraction: Annotated[float, Bounds(ge=0, lt=1)] = 0.001
    """Share of the samples that may turn out damaged before the run stops; each is replaced by a neighbour and recorded."""
    transform: str | None = None
    """`package.module:function` of (PIL image, NumPy generator) that returns a PIL image, in processes of its own."""
    transform_workers: Annotated[int, Bounds(ge=1)] = 2
    """Those processes, per rank."""

    def __post_init__(self) -> None:
        check_bounds(self)
        if bool(self.uri) == bool(self.mix):
            raise ValueError(
                "uri and data.mix are both given: leave out data.uri, or every key of data.mix"
                if self.uri
                else "uri is missing: set data.uri=VALUE"
            )

    def shape(self, manifest: Manifest) -> tuple[int, int, int]:
        """(H, W, C) of the images that a stream gives. Raises ConfigError where nothing says it."""
        side = self.resolution or self.crop or manifest.resolution
        if side is None:
            raise ConfigError(f"the images at {self.uri or 'data.mix'} have different sizes: set data.resolution=N")
        return side, side, manifest.channels

    def make_cache(self) -> Cache | None:
        """The cache of this node. Raises ConfigError if its folder cannot be written."""
        return Cache(self.cache, int(self.cache_gb * 1e9)) if self.cache else None

    def quarantine(self, manifest: Manifest, path: Path | None = None) -> Quarantine:
        """A record of bad samples with this budget."""
        return Quarantine(int(self.bad_fraction * manifest.samples), path, manifest.samples)


@dataclass(frozen=True, kw_only=True)
class MicroBatch:
    """m consecutive samples of a global batch. Nothing is mirrored or scaled yet: that belongs on the device."""

    images: Tensor
    """uint8 [m, C, H, W] in channels-last memory, not flipped; pinned where CUDA is."""
    labels: Tensor
    """int64 [m]."""
    samples: Tensor
    """int64 [m]: sample ids, counted through the shards."""
    epochs: Tensor
    """int64 [m]."""
    positions: Tensor
    """int64 [m]: samples consumed before each one, since the start of training."""
    flips: Tensor
    """bool [m]: which images the consumer has to mirror; all False without `DataConfig.flip`, and where the stream does it."""
    valid: Tensor
    """bool [m]: False where another image stands in for a damaged one."""


class DataLoader:
    """Endless iterator of one rank's micro-batches.

    Args:
        config: where and how.
        manifest: of `config.uri`.
        seed: of the run.
        global_batch: B, samples per update over all ranks and micro-steps.
        micro_batch: m.
        rank: r, of `world_size` W.
        position: samples consumed before the first batch; with `rollbacks` the whole state of a stream.
        rollbacks: as of `Order`.
        quarantine: told of bad samples.
        mirror: mirror images here, as they are decoded, and not on the consumer's device: cheaper where that is the CPU.

    Raises ConfigError if B is not a multiple of W * m. `__next__` raises DataError if too much of the shards is not what
    their index says, StorageError if they cannot be read.
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
        rollbacks: int = 0,
        quarantine: Quarantine | None = None,
        mirror: bool = False,
    ) -> None:
        self.waited = 0.0
        """Seconds that the consumer has spent blocked in `__next__`."""
        self._order = make_order(manifest, OrderRule(seed, config.lanes, rollbacks))
        self._config, self._mirror = config, mirror
        self._share = RankSampler(global_batch, micro_batch, rank, world_size)
        capacity = self._share.open_runs(self._order, _FETCH_AHEAD + _DECODE_AHEAD)
        self._reader = Reader(config.uri, manifest, self._order, capacity=capacity, cache=config.make_cache())
        self.quarantine = quarantine or config.quarantine(manifest)
        self._assembler = Collator(
            self._reader,
            config.shape(manifest),
            config.decode_threads,
            self.quarantine,
            crop=config.crop,
            transform=config.transform,
            workers=config.transform_workers,
            seed=seed,
        )
        self._queue: queue.Queue[MicroBatch | BaseException] = queue.Queue(config.read_ahead)
        self._failure: BaseException | None = None
        self._stop = threading.Event()
        # A daemon, so that the interpreter does not wait for it, and ended by the finaliser at exit: a daemon that is
        # still inside torch when the interpreter ends aborts the process.
        self._thread = threading.Thread(target=self._produce, args=(position,), name="read-ahead", daemon=True)
        self._end = weakref.finalize(self, _end, self._stop, self._reader, self._thread)
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
        return self._reader.bytes_read

    def amplification(self) -> float:
        """How many ranks read each byte (`RankSampler.amplification`)."""
        return self._share.amplification(self._order)

    def close(self) -> None:
        """Stop reading ahead and wait until the threads are gone."""
        self._end()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _produce(self, position: int) -> None:
        try:
            for batch in self._batches(position):
                if not self._offer(batch):
                    return
        except BaseException as error:
            self._offer(error)
        finally:
            self._assembler.close()
            self._reader.close()

    def _offer(self, item: MicroBatch | BaseException) -> bool:
        while not self._stop.is_set():
            try:
                self._queue.put(item, timeout=0.1)
                return True
            except queue.Full:
                pass
        return False

    def _batches(self, position: int) -> Iterator[MicroBatch]:
        expected: deque[SamplePlan] = deque()
        started: deque[tuple[SamplePlan, Pending]] = deque()
        for plan in self._share.plans(self._order, position):
            self._reader.expect(plan.samples)
            expected.append(plan)
            if len(expected) > _FETCH_AHEAD:
                plan = expected.popleft()
                mirrored = self._mirrored(plan) if self._mirror else None
                started.append((plan, self._assembler.start(plan.samples, plan.epochs, mirrored)))
            if len(started) == _DECODE_AHEAD:
                yield self._finished(*started.popleft())

    def _mirrored(self, plan: SamplePlan) -> NDArray[np.bool_]:
        return flips(self._order.seed, plan.epochs, plan.samples) & self._config.flip

    def _finished(self, plan: SamplePlan, pending: Pending) -> MicroBatch:
        pending.wait()
        mirrored = np.zeros(len(plan.samples), np.bool_) if self._mirror else self._mirrored(plan)
        return MicroBatch(
            images=pending.images,
            labels=torch.from_numpy(pending.labels),
            samples=torch.from_numpy(plan.samples),
            epochs=torch.from_numpy(plan.epochs),
            positions=torch.from_numpy(plan.positions),
            flips=torch.from_numpy(mirrored),
            valid=torch.from_numpy(pending.valid),
        )


def _end(stop: threading.Event, reader: Reader, thread: threading.Thread) -> None:
    stop.set()
    reader.interrupt()
    thread.join()


def load_all(config: DataConfig, manifest: Manifest) -> tuple[Tensor, Tensor]:
    """Every image, uint8 [N, C, H, W], and label, int64 [N], by sample id: for sets that fit in memory."""
    reader = Reader(config.uri, manifest, Order(manifest.shards, seed=0), capacity=64)
    assembler = Collator(reader, config.shape(manifest), config.decode_threads, config.quarantine(manifest), config.crop)
    images, labels = [], []
    try:
        for first in range(0, manifest.samples, 1024):
            chunk = np.arange(first, min(first + 1024, manifest.samples))
            reader.expect(chunk)
            pending = assembler.start(chunk, np.zeros_like(chunk))
            pending.wait()
            images.append(pending.images)
            labels.append(torch.from_numpy(pending.labels))
    finally:
        assembler.close()
        reader.close()
    return torch.cat(images), torch.cat(labels)
