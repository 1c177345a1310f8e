"""How fast stores are, in a time that is given: a mount or a server that does not answer becomes a line of the report."""

import os
import queue
import random
import socket
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from pipeline import storage
from pipeline.errors import UserError
from pipeline.storage import removal
from pipeline.tracking.mlflow_errors import first_line

T = TypeVar("T")

LIMIT_SECONDS = 15.0
"""That MLflow, a disk, or a store beyond its own time, may take to answer."""
_CHUNK = 8 << 20
_MOST_CHUNKS = 32
_READERS = 4


@dataclass(frozen=True)
class Store:
    """How fast a URI is, in bytes per second; None for what was not tried."""

    uri: str
    write: float | None = None
    read: float | None = None
    error: str = ""


def written(uri: str, seconds: float) -> Store:
    """Write to `uri` and read it again, in about `seconds`."""
    return _guarded(_write_and_read, uri, seconds)


def shards(uri: str, seconds: float) -> Store:
    """Read shards at `uri` for about `seconds`."""
    return _guarded(_read_shards, uri, seconds)


def slower(store: Store, times: float) -> Store:
    """Return `store` as if it were so many times slower."""
    return Store(store.uri, store.write and store.write / times, store.read and store.read / times, store.error)


def _guarded(measure: Callable[[str, float], Store], uri: str, seconds: float) -> Store:
    try:
        return within(seconds + LIMIT_SECONDS, partial(measure, uri, seconds))
    except TimeoutError:
        return Store(uri, error=f"no answer within {seconds + LIMIT_SECONDS:.0f} s")
    except (UserError, OSError) as error:
        return Store(uri, error=first_line(error))


def _write_and_read(uri: str, seconds: float) -> Store:
    path = storage.local_path(uri)
    there = str(existing(path)) if path else uri  # a folder that we made would be in the way of a new run
    chunk, chunks, spent = os.urandom(_CHUNK), 0, 0.0
    with removal.trial(there, f".doctor-{socket.gethostname()}-") as name:
        while spent < seconds / 8 and chunks < _MOST_CHUNKS:
            chunks = max(1, 4 * chunks)
            spent = seconds_of(lambda: storage.write_chunks(name, [chunk] * chunks))  # noqa: B023
        _forget(name)
        return Store(uri, chunks * _CHUNK / spent, _read([name], chunks * _CHUNK, seconds / 2))


def _read_shards(uri: str, seconds: float) -> Store:
    tars = [storage.join(uri, name) for name in storage.names(uri) if name.endswith(".tar")]
    if not tars:
        return Store(uri, error="no .tar there")
    chosen = random.sample(tars, min(len(tars), 8))
    for name in chosen:
        _forget(name)
    return Store(uri, read=_read(chosen, min(map(storage.size, chosen)), seconds / 2))


def _read(names: Sequence[str], size: int, seconds: float) -> float:
    """Bytes per second of reading stretches of what is stored under `names`, several at once."""
    end, began = time.monotonic() + seconds, time.perf_counter()

    def read(start: int) -> int:
        if time.monotonic() > end:
            return 0
        return sum(len(storage.read_range(name, start, min(start + _CHUNK, size))) for name in names)

    with ThreadPoolExecutor(_READERS) as pool:
        done = sum(pool.map(read, range(0, size, _CHUNK)))
    return done / (time.perf_counter() - began)


def _forget(name: str) -> None:
    """Drop what this node keeps of a local file, or its memory would be measured."""
    if path := storage.local_path(name):
        with open(path, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def existing(path: Path) -> Path:
    """Return the folder itself, or the nearest one above it that is there."""
    path = path.absolute()
    return next(folder for folder in (path, *path.parents) if folder.is_dir())


def seconds_of(action: Callable[[], object]) -> float:
    """Return how long `action` takes."""
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def within(seconds: float, action: Callable[[], T]) -> T:
    """Return what `action` returns, or raise what it raises; TimeoutError if that takes longer.

    The action itself goes on in its thread.
    """
    done: queue.SimpleQueue[tuple[T | None, BaseException | None]] = queue.SimpleQueue()

    def work() -> None:
        try:
            done.put((action(), None))
        except BaseException as error:
            done.put((None, error))

    threading.Thread(target=work, daemon=True).start()
    try:
        result, error = done.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError(f"no answer within {seconds:.0f} s") from None
    if error is not None:
        raise error
    return result  # type: ignore[return-value]
