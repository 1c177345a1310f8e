"""Samples that cannot be used: each keeps its slot in the order, is recorded once, and too many of them end the run."""

import contextlib
import hashlib
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field
from typing_extensions import TypedDict

from pipeline.data.mixture import Mixture
from pipeline.data.order import Order
from pipeline.errors import DataError
from pipeline.storage.best_effort import best_effort
from pipeline.untrusted import parse
from pipeline.wording import plural

_SUBSTITUTES = 64  # tried in a run, and then elsewhere, before the set is given up


class BadSampleError(Exception):
    """One sample cannot be used: its bytes are damaged or missing, or are no image. `advice` says how to get rid of that."""

    def __init__(self, shard: str, sample: int, key: str, reason: str, advice: str = "restore the shard from a copy") -> None:
        super().__init__(f"{shard}, sample {sample} ({key}): {reason}")
        self.shard, self.sample, self.key, self.reason, self.advice = shard, sample, key, reason, advice


class _Bad(TypedDict):
    """A line of the record."""

    sample: Annotated[int, Field(ge=0, lt=1 << 63)]


class Quarantine:
    """The record of bad samples, shared by the ranks of a run through a file that only grows.

    Args:
        budget: how many samples may be bad.
        path: one JSON line each: sample, shard, key, reason. Without it the record is this process's own.
        samples: how many there are, for the message.
    """

    def __init__(self, budget: int, path: Path | None = None, samples: int = 0) -> None:
        self.budget, self.path, self.samples = budget, path, samples
        self._lock = threading.Lock()
        self._known: set[int] = set()
        self._read()

    def count(self) -> int:
        """How many samples are bad, over all ranks."""
        with self._lock:
            self._read()
            return len(self._known)

    def add(self, bad: BadSampleError) -> None:
        """Record `bad`, once. Raises DataError if that is one too many, counting those that other ranks have recorded."""
        with self._lock:
            if bad.sample in self._known:
                return
            torn = self._read()
            if self.path and bad.sample not in self._known:
                self._write(self.path, {"sample": bad.sample, "shard": bad.shard, "key": bad.key, "reason": bad.reason}, torn)
            self._known.add(bad.sample)
            if len(self._known) > self.budget:
                bad_ones = plural(len(self._known), "sample")
                where = f"; {self.path} lists them" if self.path else ""
                raise DataError(
                    f"{bad_ones} cannot be used and data.bad_fraction allows {self.budget}, the last: {bad}{where}; "
                    f"{bad.advice}, or set data.bad_fraction={self._enough()} to train without"
                )

    def _write(self, path: Path, record: dict[str, object], torn: bool) -> None:
        """Append `record`; where the disk refuses, the other ranks do not learn of it, and count only their own."""
        with best_effort(path):
            # One write in append mode: lines of several ranks do not mix.
            descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                os.write(descriptor, ("\n" * torn + json.dumps(record) + "\n").encode())
            finally:
                os.close(descriptor)

    def _enough(self) -> str:
        """Return a `data.bad_fraction` that allows ten times as many as are known: the next one does not stop the run again."""
        return f"{min(10 * len(self._known) / self.samples, 0.99):.2g}" if self.samples else "FRACTION"

    def _read(self) -> bool:
        """Learn what the file holds; returns whether its last line is torn: a machine died while it wrote."""
        text = ""
        if self.path:
            with best_effort(self.path), contextlib.suppress(FileNotFoundError, NotADirectoryError):
                text = self.path.read_text(errors="replace")
        for line in text.splitlines():
            with contextlib.suppress(DataError):  # torn, or damaged
                self._known.add(parse(_Bad, line, str(self.path))["sample"])
        return text != "" and not text.endswith("\n")


def candidates(order: Order | Mixture, sample: int) -> Iterator[int]:
    """The sample, then those that can stand in for it: the others of its run, then any. The same whoever asks."""
    yield sample
    run = int(np.searchsorted(order.starts, sample, side="right")) - 1
    first, length = int(order.starts[run]), int(order.starts[run + 1] - order.starts[run])
    for k in range(1, min(length, _SUBSTITUTES)):
        yield first + (sample - first + k) % length
    for k in range(_SUBSTITUTES):  # where a shard was cut, its run and those that follow are gone: look anywhere
        yield int.from_bytes(hashlib.blake2b(f"{sample} {k}".encode(), digest_size=8).digest()) % order.samples
