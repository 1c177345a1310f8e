"""Who may commit checkpoints at a place: the last training that started there, and no two at a time.

Each start puts `fence-NUMBER.json` beside the checkpoints, one number higher than any other; a store lets one of several take
a number. A commit looks for higher numbers first: a training that was taken for dead, because its node was cut off, finds its
successor's and stops. The holder renews its file every few seconds. A start reads the last one: if its process is gone, if it
was released or is of an earlier start of the same Slurm job, it goes on at once; else, from another host, it waits whether
the file is renewed, and refuses if it is.
"""

import contextlib
import json
import os
import re
import socket
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pipeline import storage
from pipeline.errors import ConfigError, StorageError
from pipeline.liveness import Process, job, machine, started, superseded
from pipeline.storage import removal
from pipeline.untrusted import parse
from pipeline.wording import printable

if TYPE_CHECKING:
    from pipeline.engine.ranks import Ranks

BEAT = 5.0
"""Seconds between two renewals."""
_NAME = re.compile(r"fence-(\d{10})\.json")
_is_fence = removal.has("host", "name", "pid", "started")


class FencedError(ConfigError):
    """Another training has taken over."""


@dataclass
class Fence:
    """The right to commit below `uri`, of start number `number`."""

    uri: str
    number: int
    _released: threading.Event = field(default_factory=threading.Event)

    def check(self) -> None:
        """Raises FencedError if a later start has taken over."""
        if (last := max(_numbers(self.uri), default=0)) > self.number:
            raise FencedError(
                f"checkpoint.uri={self.uri}: another training started there after this one (start {last}; this is start "
                f"{self.number}): nothing more is saved. Stop one of them, or name another place"
            )

    def release(self) -> None:
        """Let the next start go on at once."""
        if not self._released.is_set():
            self._released.set()
            self._write(released=True)

    def _renew(self) -> None:
        beats = 0
        while not self._released.wait(BEAT):
            beats += 1
            self._write(beats=beats)

    def _write(self, **more: object) -> None:
        with contextlib.suppress(ConfigError, StorageError):  # a store that is away is the concern of those who save
            storage.write_bytes(_place(self.uri, self.number), json.dumps(_holder() | more).encode())


def take(uri: str) -> Fence:
    """A new start at `uri`. Raises ConfigError if another training saves itself there."""
    while True:
        last = max(_numbers(uri), default=0)
        if last:
            _wait_for_end(uri, last)
        fence = Fence(uri, last + 1)
        if storage.create_bytes(_place(uri, fence.number), json.dumps(_holder()).encode()):
            break
    for number in _numbers(uri):
        if number < fence.number:
            removal.remove(_place(uri, number), _is_fence)
    threading.Thread(target=fence._renew, name="fence", daemon=True).start()
    return fence


def _wait_for_end(uri: str, number: int) -> None:
    """Return when start `number` has ended. Raises ConfigError if it goes on."""
    first = _read(uri, number)
    if first is None or first.get("released") or superseded(first):
        return
    if first.get("host") == machine():
        alive = first.get("started") == started(int(first.get("pid", 0))) != "" and first.get("pid") != os.getpid()
    else:
        deadline = time.monotonic() + 2.5 * BEAT
        while not (alive := _read(uri, number) not in (first, None)) and time.monotonic() < deadline:
            time.sleep(BEAT / 5)
    if alive:
        raise ConfigError(
            f"checkpoint.uri={uri}: process {first.get('pid')} on {printable(str(first.get('name')))} is training there: stop "
            "that first, or name another place"
        )


def holds_fence(uri: str, names: list[str]) -> bool:
    """Return whether one of the files `names` at `uri` is that of a start."""
    return any(_NAME.fullmatch(name) and _is_fence(storage.read_bytes(storage.join(uri, name))) for name in names)


def _numbers(uri: str) -> list[int]:
    return [int(match[1]) for name in storage.names(uri) if (match := _NAME.fullmatch(name))]


def _place(uri: str, number: int) -> str:
    return storage.join(uri, f"fence-{number:010d}.json")


def _read(uri: str, number: int) -> dict[str, Any] | None:
    """Return who has made fence `number`, with all that it says; None if it is gone. Raises DataError if it is damaged."""
    place, advice = _place(uri, number), "delete it, if no training runs there"
    try:
        data = storage.read_bytes(place)
    except storage.NotFoundError:
        return None
    parse(Process, data, f"{place} is damaged", advice)
    return parse(dict[str, Any], data, place, advice)


def _holder() -> dict[str, object]:
    return {"host": machine(), "name": socket.gethostname(), "pid": os.getpid(), "started": started(os.getpid())} | job()


def take_fence(uri: str, ranks: "Ranks") -> Fence:
    """The right to save below `uri`: rank 0 takes it, all know it. Collective. Raises ConfigError, on rank 0."""
    from pipeline.engine import agreement  # torch

    fence = take(uri) if ranks.main else None
    number = agreement.from_main(int, fence.number if fence else None, ranks)
    return fence or Fence(uri, number)
