"""Where the time of a run goes: phases that add up to the wall clock, nothing counted twice."""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, Protocol

import torch
import torch.distributed as dist

OTHER, COMMUNICATION = "other", "communication"
_COLLECTIVES = (
    *("all_reduce", "all_gather", "all_gather_into_tensor", "all_gather_object", "reduce", "reduce_scatter"),
    *("reduce_scatter_tensor", "broadcast", "broadcast_object_list", "all_to_all_single", "barrier"),
)
_PENDING = 2000


class _Moment(Protocol):
    """What `torch.cuda.Event` offers."""

    def query(self) -> bool: ...
    def synchronize(self) -> None: ...
    def elapsed_time(self, later: Any) -> float: ...


class _HostMoment:
    """A moment of the host's clock, with the interface of a CUDA event."""

    def __init__(self) -> None:
        self.seconds = time.perf_counter()

    def query(self) -> bool:
        return True

    def synchronize(self) -> None: ...

    def elapsed_time(self, later: "_HostMoment") -> float:
        return 1000 * (later.seconds - self.seconds)


class Clock:
    """Charges every moment since it was made to one phase: the innermost that is open, or `other` where none is.

    On CUDA a phase begins and ends with an event in the stream that was current when the clock was made, so it lasts as long as
    the device worked on it or had nothing to do but wait for it. Steps are not synchronised; `lap` waits for the device.
    """

    def __init__(self, device: torch.device):
        self._stream = torch.cuda.current_stream(device) if device.type == "cuda" else None
        self._open = [OTHER]
        self._since = self._moment()
        self._ended: deque[tuple[str, _Moment]] = deque()
        """Phase, and the moment at which it stopped to be the innermost one; not yet charged."""
        self._lap: dict[str, float] = {}
        self.totals: dict[str, float] = {}
        """Seconds by phase up to the last `lap`."""

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Charge what happens inside to `name`; a phase inside it has its own time."""
        self._ended.append((self._open[-1], self._moment()))
        self._open.append(name)
        try:
            yield
        finally:
            self._ended.append((self._open.pop(), self._moment()))
            if len(self._ended) > _PENDING:
                self._charge()

    def lap(self) -> dict[str, float]:
        """Seconds by phase since the last lap, in whose sum no moment is missing."""
        self._ended.append((self._open[-1], self._moment()))
        self._ended[-1][1].synchronize()
        self._charge()
        lap, self._lap = self._lap, {}
        for name, seconds in lap.items():
            self.totals[name] = self.totals.get(name, 0.0) + seconds
        return lap

    def _moment(self) -> _Moment:
        if self._stream is None:
            return _HostMoment()
        event = torch.cuda.Event(enable_timing=True)
        event.record(self._stream)
        return event

    def _charge(self) -> None:
        while self._ended and self._ended[0][1].query():
            name, moment = self._ended.popleft()
            self._lap[name] = self._lap.get(name, 0.0) + self._since.elapsed_time(moment) / 1000
            self._since = moment


@contextmanager
def timed_collectives(clock: Clock) -> Iterator[None]:
    """Inside, collectives of torch.distributed are a phase: how long the step waits for them, and in them for slower ranks.

    That is what they cost: one that runs beside backward (async_op, or a CUDA stream of its own) is charged only where the
    step waits for it inside another collective, and otherwise belongs to the phase that waits.
    """
    from deepspeed import comm

    plain = {name: getattr(dist, name) for name in _COLLECTIVES}
    backend = comm.comm.cdb  # it keeps two of the functions; None where DeepSpeed has not been started
    kept = {name: getattr(backend, name) for name in ("all_gather_function", "reduce_scatter_function") if backend}

    def timed(collective: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(collective)
        def run(*args: Any, **kwargs: Any) -> Any:
            # A saver's thread waits for itself. Autograd's threads are none of Python's, and the step waits for them.
            if type(threading.current_thread()) is threading.Thread:
                return collective(*args, **kwargs)
            with clock.phase(COMMUNICATION):
                return collective(*args, **kwargs)

        return run

    try:
        for name, collective in plain.items():
            setattr(dist, name, timed(collective))
        for name, collective in kept.items():
            setattr(backend, name, timed(collective))
        yield
    finally:
        for name, collective in plain.items():
            setattr(dist, name, collective)
        for name, collective in kept.items():
            setattr(backend, name, collective)
