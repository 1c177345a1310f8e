"""A thread that watches a rank's main thread: ends a run that hangs, with stacks, and tells which rank is slow.

Every rank watches itself. One that hangs makes the others wait in a collective, so all dump, about the same moment:

RUN/logs/hang-rank00000-TIME.txt     one line of JSON, the last phases, the stacks of all threads
RUN/logs/hang-rank00000-TIME.json    torch's flight recorder: the last collectives of this rank
"""

import faulthandler
import json
import os
import socket
import statistics
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from types import FrameType, TracebackType
from typing import Annotated, Any, Self

import torch
import torch.distributed as dist
from pydantic import Field

from pipeline import exit_codes
from pipeline.bounds import Bounds, check_bounds
from pipeline.engine import agreement
from pipeline.engine.ranks import Ranks
from pipeline.errors import DataError
from pipeline.storage.small_files import BIG
from pipeline.storage.temporary import replacing
from pipeline.untrusted import parse

SLOW = 1.3
"""A rank whose own time is so many times the median's is named."""

_LOOK_SECONDS = 0.05
_LINGER_SECONDS = 5.0
"""From a dump to the end: the launcher ends all ranks with the first, and the others want to dump, too."""
_LEAST_LOOKS = 400
"""That a rank's own time is judged by: 20 s."""
_PHASES = 200
_MOST_LINE = 16 << 20  # bytes, for the names of 100,000 hosts
_COLLECTIVES = "200"
"""That a dump shows, the last ones."""


@dataclass(frozen=True)
class HangConfig:
    """When a run that does not get on ends itself. A store that is late is asked again for 180 s, which is no hang."""

    first_timeout: Annotated[float, Bounds(gt=0)] = 1800.0
    """Seconds that any phase of the first update may take, and any wait for a checkpoint's store."""
    timeout: Annotated[float, Bounds(gt=0)] = 600.0
    """Seconds that any phase of a later update may take."""

    def __post_init__(self) -> None:
        check_bounds(self)


_Count = Annotated[int, Field(ge=0, le=BIG)]


@dataclass(frozen=True, kw_only=True)
class Hang:
    """How one rank stood: the first line of its dump."""

    rank: _Count
    hosts: list[str]
    """Of all ranks."""
    images: _Count
    phase: str
    seconds: Annotated[float, Field(ge=0, le=BIG)]
    collectives: _Count
    """That this rank has begun; those that others wait for have begun more."""
    at: str
    """Where in our code the main thread is."""


@dataclass(frozen=True)
class Spread:
    """Seconds per update that the ranks take themselves, without waiting for each other."""

    least: float
    median: float
    most: float
    slowest: str
    """`rank 3 on HOST`."""

    @property
    def ratio(self) -> float:
        """Of the slowest to the median."""
        return self.most / max(self.median, 1e-9)


def record_collectives(folder: Path) -> None:
    """Switch torch's flight recorder on; before the process group is made. NCCL writes its own there, if it times out."""
    os.environ.setdefault("TORCH_FR_BUFFER_SIZE", _COLLECTIVES)
    os.environ.setdefault("TORCH_FR_DUMP_TEMP_FILE", str(folder.absolute() / "logs" / "nccl-rank"))
    os.environ.setdefault("TORCH_NCCL_DUMP_ON_TIMEOUT", "1")


class Watchdog:
    """Told of every phase by the loop; a context, whose thread runs inside. Every rank makes one (collective)."""

    def __init__(self, config: HangConfig, folder: Path, ranks: Ranks) -> None:
        self._config, self._logs, self._ranks = config, folder / "logs", ranks
        self._main = threading.get_ident()
        self._closing = threading.Event()
        self._phases: deque[tuple[float, int, str]] = deque(maxlen=_PHASES)
        self._marks = self._updates = 0
        self._looks = self._waits = 0
        self._since = (time.monotonic(), 0)
        self._hosts = agreement.from_all(str, socket.gethostname(), ranks)
        self.enter("start", 0)
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def enter(self, phase: str, images: int) -> None:
        """The main thread begins with a phase of the update from `images`."""
        self._phases.append((time.time(), images, phase))
        self._marks += 1

    def updated(self) -> None:
        """An update is done. From the first one on, whatever waits for another rank does so for less time."""
        self._updates += 1
        if self._updates == 1:
            _limit_collectives(max(2 * self._config.timeout, self._config.first_timeout) + _LINGER_SECONDS)

    def spread(self) -> Spread | None:
        """The ranks' own times since the last call. Collective. None on a GPU, whose waiting no thread of the host sees."""
        if self._ranks.device.type == "cuda":
            return None
        now, (began, updates) = time.monotonic(), self._since
        own = (now - began) * (1 - self._waits / max(self._looks, 1)) / max(self._updates - updates, 1)
        enough = self._looks >= _LEAST_LOOKS
        self._since, self._looks, self._waits = (now, self._updates), 0, 0
        times = torch.zeros(self._ranks.world_size + 1, dtype=torch.float64)
        times[self._ranks.rank], times[-1] = own, float(enough)
        dist.all_reduce(times)
        if times[-1] < self._ranks.world_size:
            return None  # too short for a statement
        return spread_of(times[:-1].tolist(), self._hosts)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._closing.set()
        self._thread.join()

    def _watch(self) -> None:
        idle, seen, last = 0.0, -1, time.monotonic()
        while not self._closing.wait(_LOOK_SECONDS):
            now, marks = time.monotonic(), self._marks
            # Counted in looks: a process that was suspended, or a machine that slept, has not hung.
            idle = idle + min(now - last, 4 * _LOOK_SECONDS) if marks == seen else 0.0
            seen, last = marks, now
            self._looks += 1
            self._waits += _waiting(sys._current_frames().get(self._main))
            patient = not self._updates or self._phases[-1][2] == "checkpoint"
            if idle > (self._config.first_timeout if patient else self._config.timeout):
                try:
                    self._dump(idle)
                except Exception:  # a full disk, say: it ends all the same
                    traceback.print_exc()
                self._closing.wait(_LINGER_SECONDS)
                os._exit(exit_codes.HUNG.number)

    def _dump(self, idle: float) -> None:
        base = self._logs / f"hang-rank{self._ranks.rank:05d}-{time.strftime('%Y%m%d-%H%M%S')}"
        _, images, phase = self._phases[-1]
        at = _place(sys._current_frames().get(self._main))
        hang = Hang(
            rank=self._ranks.rank,
            hosts=self._hosts,
            images=images,
            phase=phase,
            seconds=round(idle, 1),
            collectives=_collectives_begun(),
            at=at,
        )
        self._logs.mkdir(exist_ok=True)
        with replacing(base.with_suffix(".txt")) as half, open(half, "w") as file:
            print(json.dumps(asdict(hang)), file=file)
            for moment, images, phase in self._phases:
                clock = time.strftime("%H:%M:%S", time.localtime(moment))
                print(f"{clock}.{int(moment % 1 * 1000):03d}  {images:>12,} img  {phase}", file=file)
            file.flush()
            faulthandler.dump_traceback(file, all_threads=True)
        base.with_suffix(".json").write_bytes(_flight_recorder(self._ranks.device.type))


def spread_of(seconds: list[float], hosts: list[str]) -> Spread:
    """The spread of the ranks' own `seconds` per update."""
    slowest = max(range(len(seconds)), key=seconds.__getitem__)
    # The lower median: of two ranks the slower one is compared with the other, not with their mean.
    median = statistics.median_low(seconds)
    return Spread(min(seconds), median, seconds[slowest], f"rank {slowest} on {hosts[slowest]}")


def explain(dumps: Iterable[Path]) -> str:
    """Say what the ranks' dumps tell together: who kept the others waiting, and where. Damaged ones are passed over."""
    hangs = sorted((hang for path in dumps if (hang := _read(path))), key=lambda hang: hang.rank)
    if not hangs:
        return "no progress, and the dumps of the ranks are damaged"
    hosts, front = hangs[0].hosts, max(hangs, key=lambda hang: hang.collectives)
    least = min(hang.collectives for hang in hangs)
    silent = [f"rank {rank} on {host}" for rank, host in enumerate(hosts) if rank not in {hang.rank for hang in hangs}]
    behind = [
        f"rank {hang.rank} on {hosts[hang.rank]}, at {hang.at}"
        for hang in hangs
        if hang.collectives == least < front.collectives
    ]
    text = f"no progress for {front.seconds:.0f} s in the {front.phase} after image {front.images:,}"
    if silent:
        text += f"; stopped, or its machine gone: {', '.join(silent)}"
    if behind:
        text += f"; did not reach the collective that the others wait in: {', '.join(behind)}"
    if not silent and not behind:
        text += f"; all ranks have begun the same collectives: at {front.at}"
    return text


def _read(dump: Path) -> Hang | None:
    try:
        with open(dump, "rb") as file:
            hang = parse(Hang, file.readline(_MOST_LINE), str(dump))
    except (DataError, OSError):
        return None
    return hang if hang.rank < len(hang.hosts) else None


def _frames(frame: FrameType | None) -> Iterable[FrameType]:
    """From the innermost outwards."""
    while frame:
        yield frame
        frame = frame.f_back


def _waiting(frame: FrameType | None) -> bool:
    return any("torch/distributed/" in each.f_code.co_filename for each in _frames(frame))


def _place(frame: FrameType | None) -> str:
    """Innermost line of our own packages, as file:line function."""
    root = Path(__file__).parents[2]
    for each in _frames(frame):
        path = Path(each.f_code.co_filename)
        if path.is_relative_to(root) and path.relative_to(root).parts[0] in ("model", "pipeline", "jobs"):
            return f"{path.relative_to(root)}:{each.f_lineno} {each.f_code.co_name}"
    return "an unknown place"


# Private names of torch, each in one function.


def _limit_collectives(seconds: float) -> None:
    """The timeout of every later collective, in every group."""
    for group in dist.distributed_c10d._world.pg_map:
        dist.distributed_c10d._set_pg_timeout(timedelta(seconds=seconds), group)


def _collectives_begun() -> int:
    """By this rank, over all its groups."""
    groups: Iterable[Any] = dist.distributed_c10d._world.pg_map
    return sum(group._get_sequence_number_for_group() for group in groups)


def _flight_recorder(device: str) -> bytes:
    """The last collectives of this rank, as torch writes them."""
    from torch._C import _distributed_c10d

    dump = _distributed_c10d._dump_nccl_trace_json if device == "cuda" else _distributed_c10d._dump_fr_trace_json  # type: ignore[attr-defined]
    return dump(includeCollectives=True, onlyActive=False)
