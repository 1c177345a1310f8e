"""What bounds the reading of a set of shards: the store, the checksums, decoding, or whoever takes the images."""

import os
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import count, islice

import google_crc32c
import numpy as np

from pipeline import storage
from pipeline.data.decode import Pixels, UndecodableError, decode_into
from pipeline.data.loader import DataConfig, DataLoader
from pipeline.data.manifest import Manifest
from pipeline.data.order import Order
from pipeline.data.quarantine import BadSampleError, candidates
from pipeline.data.reader import Reader
from pipeline.errors import DataError
from pipeline.storage.containment import below

_BATCH = 64


@dataclass(frozen=True, kw_only=True)
class Findings:
    """Rates are images per second, of each part as if it were alone; times are seconds."""

    image_bytes: float
    """Mean bytes of tar per image."""
    latency: float
    """From a request for one byte of a shard to its arrival."""
    request: float
    """From a request for a whole run, with no other in flight, to its end."""
    store: float
    """Runs read side by side."""
    tar: float
    """Finding images in their runs and comparing checksums, on one thread."""
    decode_one: float
    """Decoding on one thread."""
    decode: float
    """Decoding on `threads`."""
    threads: int
    cores: int
    whole: float
    """The stream that training uses, as fast as it goes."""
    wanted: float | None
    """What the consumer takes, if the user said it."""

    @property
    def bound(self) -> str:
        """consumer, latency, bandwidth, tar or decode."""
        if self.wanted is not None and self.whole >= self.wanted:
            return "consumer"
        slowest = min(("store", "tar", "decode"), key=lambda part: getattr(self, part))
        if slowest != "store":
            return slowest
        return "latency" if self.latency > self.request / 2 else "bandwidth"

    @property
    def advice(self) -> str:
        """What to do about the bound."""
        megabytes = self.store * self.image_bytes / 1e6
        return {
            "consumer": f"the data path gives {self.whole:,.0f} images/s, more than the {self.wanted or 0:,.0f} that are "
            "taken: nothing to do",
            "latency": f"each request waits {self.latency * 1e3:.0f} ms for its first byte: keep the shards in the region of "
            "the machines, or on local disk",
            "bandwidth": f"the store gives {megabytes:,.0f} MB/s: keep the shards nearer, or pack smaller images "
            "(`biggan shard --resolution N`)",
            "tar": "checksums take longer than decoding: the images are tiny; pack them as JPEG or use more ranks",
            "decode": f"{self.threads} threads decode {self.decode:,.0f} images/s, one {self.decode_one:,.0f}, and there are "
            f"{self.cores} cores: raise data.decode_threads"
            if self.threads < self.cores
            else f"all {self.cores} cores decode: pack at the training's resolution (`biggan shard --resolution N`) and as "
            "JPEG if that is not done, else take machines with more cores",
        }[self.bound]


def examine(config: DataConfig, manifest: Manifest, seconds: float, wanted: float | None = None) -> Findings:
    """Measure for about `seconds`. Raises what reading raises: DataError, StorageError, ConfigError."""
    part = seconds / 4
    first = below(manifest.tars or config.uri, manifest.shards[0].name, config.uri)
    latency = statistics.median(_seconds(lambda: storage.read_range(first, 0, 1)) for _ in range(9))
    order = Order(manifest.shards, seed=time.time_ns() % (1 << 32))  # not what a cache still has from the last time
    reader = Reader(config.uri, manifest, order, capacity=1 << 20)
    out = np.empty((config.decode_threads, *config.shape(manifest)), np.uint8)
    good = partial(_decodes, out[0], config.crop)
    try:
        runs = np.random.default_rng(0).permutation(len(order.starts) - 1)
        request = statistics.median(_seconds(partial(_image, reader, int(order.starts[run]))) for run in runs[:5])
        images, store = _read(reader, order, runs[5:] if len(runs) > 5 else runs, part)
        others = (image for sample in candidates(order, 0) for image in _image(reader, sample))  # should these all be bad
        images = list(filter(good, images)) or list(islice(filter(good, others), 1))
    finally:
        reader.close()
    if not images:
        raise DataError(f"no image at {config.uri or 'data.mix'} can be used: make the shards again from their source")

    def decode(thread: int) -> float:
        return _rate(lambda i: decode_into(images[i % len(images)], out[thread], config.crop), part / 2)

    with ThreadPoolExecutor(config.decode_threads) as pool:
        together = sum(pool.map(decode, range(config.decode_threads)))
    return Findings(
        image_bytes=sum(shard.bytes for shard in manifest.shards) / manifest.samples,
        latency=latency,
        request=request,
        store=store,
        tar=_rate(lambda i: google_crc32c.value(images[i % len(images)]), 0.2),
        decode_one=decode(0),
        decode=together,
        threads=config.decode_threads,
        cores=len(os.sched_getaffinity(0)),
        whole=_stream(config, manifest, part),
        wanted=wanted,
    )


def _read(
    reader: Reader, order: Order, runs: "np.ndarray[tuple[int, ...], np.dtype[np.int64]]", seconds: float
) -> tuple[list[bytes], float]:
    """Encoded images of some runs, and how many images per second came while several runs were in flight."""
    images: list[bytes] = []
    began, done = time.perf_counter(), 0
    for chunk in np.array_split(runs, max(1, len(runs) // 8)):
        reader.expect(order.starts[chunk])
        for run in chunk.tolist():
            images += _image(reader, int(order.starts[run]))
            done += int(order.starts[run + 1] - order.starts[run])
        if (spent := time.perf_counter() - began) > seconds:
            break
    return images, done / spent


def _image(reader: Reader, sample: int) -> list[bytes]:
    """An encoded image; none if it is damaged, which reading the stream reports."""
    try:
        return [reader.image(sample).data]
    except BadSampleError:
        return []


def _decodes(out: Pixels, crop: int | None, image: bytes) -> bool:
    try:
        decode_into(image, out, crop)
    except UndecodableError:
        return False
    return True


def _stream(config: DataConfig, manifest: Manifest, seconds: float) -> float:
    with DataLoader(config, manifest, seed=0, global_batch=_BATCH, micro_batch=_BATCH, rank=0, world_size=1) as stream:
        for _ in range(2 * config.read_ahead):  # what was ready, or is waiting for its first run
            next(stream)
        return _BATCH * _rate(lambda _: next(stream), seconds)


def _seconds(action: Callable[[], object]) -> float:
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def _rate(action: Callable[[int], object], seconds: float) -> float:
    """Calls per second."""
    began = time.perf_counter()
    for done in count(1):
        action(done)
        if (spent := time.perf_counter() - began) > seconds:
            return done / spent
    raise AssertionError
