"""Micro-batches from encoded images: threads decode each image into its place; processes, where a user's transform runs."""

import itertools
import weakref
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.data.decode import Pixels, UndecodableError, decode_into
from pipeline.data.encoded import Encoded
from pipeline.data.manifest import INDEXED
from pipeline.data.order import Ints
from pipeline.data.quarantine import BadSampleError, Quarantine, candidates
from pipeline.data.reader import Reader
from pipeline.data.transform import find_transform, transformed
from pipeline.errors import DataError
from pipeline.images.floats import mirror
from pipeline.signals import ignore_signals
from pipeline.wording import command

_THREAD_BYTES = 8 << 10  # where a sample is smaller, threads lose more to the interpreter lock than they gain


@dataclass
class Pending:
    """A micro-batch in the making."""

    images: Tensor
    labels: NDArray[np.int64]
    valid: NDArray[np.bool_]
    parts: list[Future[None]]

    def wait(self) -> None:
        """Until every image is there. Raises what went wrong with one."""
        for part in self.parts:
            part.result()


class Collator:
    """Decodes samples of one reader, a bad one being replaced by another, its neighbour if that is good.

    Args:
        reader: of encoded images.
        shape: (H, W, C) of every image.
        threads: that decode.
        quarantine: told of each bad sample.
        crop: pixels of the centred square that is kept of each image; None for as much as there is.
        transform: `package.module:function` of (PIL image, NumPy generator), to run in `workers` processes.
        seed: of the run, with epoch and sample the key of that generator.
    """

    def __init__(
        self,
        reader: Reader,
        shape: tuple[int, int, int],
        threads: int,
        quarantine: Quarantine,
        crop: int | None = None,
        transform: str | None = None,
        workers: int = 1,
        seed: int = 0,
    ) -> None:
        self._reader, self._shape, self._quarantine = reader, shape, quarantine
        self._crop, self._transform, self._seed = crop, transform or "", seed
        manifest = reader.manifest
        indexed = manifest.source == INDEXED
        self._again = command(*(("index", "URI", "--out", "NEW") if indexed else ("shard", "SRC", "NEW")), "--on-error", "skip")
        small = sum(shard.bytes for shard in manifest.shards) < _THREAD_BYTES * manifest.samples
        self._parts = 1 if small and not transform else threads
        self._pool = ThreadPoolExecutor(threads, "decode")
        self._processes: ProcessPoolExecutor | None = None
        if transform:
            find_transform(transform)
            # Not forked: this process has threads, and CUDA. Each thread below waits for one process.
            self._processes = ProcessPoolExecutor(workers, get_context("spawn"), ignore_signals)
            self._parts = workers
            self._pool = ThreadPoolExecutor(workers, "decode")
        self._free: list[Pixels] = []

    def start(self, samples: Ints, epochs: Ints, mirrored: NDArray[np.bool_] | None = None) -> Pending:
        """Begin with a micro-batch; its images are uint8 [n, C, H, W] in channels-last memory, pinned where CUDA is.

        Those that are `mirrored`, bool [n], are so when they come; without it, none.
        """
        n = len(samples)
        memory = self._memory((n, *self._shape))
        pending = Pending(memory.permute(0, 3, 1, 2), np.empty(n, np.int64), np.ones(n, np.bool_), [])
        pixels = memory.numpy()

        mirrored = np.zeros(n, np.bool_) if mirrored is None else mirrored
        which = list(zip(samples.tolist(), epochs.tolist(), mirrored.tolist(), strict=True))

        def work(part: range) -> None:
            for i in part:
                pending.labels[i], pending.valid[i] = self._put(*which[i], pixels[i])

        ends = [n * (k + 1) // self._parts for k in range(self._parts)]
        pending.parts = [self._pool.submit(work, range(*part)) for part in itertools.pairwise([0, *ends])]
        return pending

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)
        if self._processes:
            self._processes.shutdown(cancel_futures=True)

    def _put(self, sample: int, epoch: int, mirrored: bool, out: Pixels) -> tuple[int, bool]:
        """Decode a sample, or the first good one after it, into `out`; returns (label, whether it is the sample itself)."""
        for candidate in candidates(self._reader.order, sample):
            try:
                encoded = self._reader.image(candidate)
                self._decode(encoded, epoch, mirrored, out)
            except BadSampleError as bad:
                self._quarantine.add(bad)
            else:
                return encoded.label, candidate == sample
        raise DataError(f"sample {sample} cannot be used, nor any that could stand in for it: restore the shards")

    def _decode(self, encoded: Encoded, epoch: int, mirrored: bool, out: Pixels) -> None:
        try:
            if self._processes is None:
                decode_into(encoded.data, out, self._crop, mirrored)
                return
            key = (self._seed, epoch, encoded.sample)
            done = self._processes.submit(transformed, self._transform, encoded.data, key, shape=out.shape, crop=self._crop)
            pixels = done.result()
            if mirrored:
                mirror(pixels, out)
            else:
                out[...] = pixels
        except UndecodableError as error:
            advice = error.advice or f"make the shards again without it: {self._again}"
            raise BadSampleError(
                encoded.shard, encoded.sample, self._reader.files.key(encoded.sample), f"no image: {error}", advice
            ) from None

    def _memory(self, shape: tuple[int, int, int, int]) -> Tensor:
        """Memory for a batch. Fresh pages cost a tenth of decoding, so what the consumer has dropped is used again."""
        if torch.cuda.is_available():
            return torch.empty(shape, dtype=torch.uint8, pin_memory=True)  # torch itself keeps pinned memory for reuse
        free = self._free.pop() if self._free else None
        base = free if free is not None and free.shape == shape else np.empty(shape, np.uint8)
        view = base[:]  # lives as long as any tensor on it
        weakref.finalize(view, self._free.append, base).atexit = False
        return torch.from_numpy(view)
