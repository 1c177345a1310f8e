"""The parts of a run's time, told to whoever depends on them: the clock, the watchdog, the profiler, the launcher."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Self

from pipeline.fault_tolerance.watchdog import Watchdog
from pipeline.profiling.clock import Clock, timed_collectives
from pipeline.profiling.trace import trace
from pipeline.tracking.terminal import Told
from pipeline.training.setup import Setup


class Phases:
    """Knows at each moment what the run does. A context; every rank has one. `say` prints a line about a trace."""

    def __init__(self, setup: Setup, images: int, watchdog: Watchdog, say: Callable[[str], None]):
        self._watchdog, self._images = watchdog, images
        self._clock = Clock(setup.ranks.device)
        self._open = ExitStack()
        self._profiler = None
        if setup.profile:
            updates = -(-setup.profile // setup.images_per_update)
            self._profiler = self._open.enter_context(trace(setup.run / "profile", setup.ranks, updates, say))
        self._told = Told() if setup.ranks.main else None

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """Charge what happens inside to `part` of the run's time; what is timed inside it belongs to that alone."""
        self._watchdog.enter(part, self._images)
        with self._clock.phase(part):
            yield
        self._watchdog.enter(f"end of {part}", self._images)

    def updated(self, images: int) -> None:
        """An update is done; the run is at `images`."""
        self._images = images
        self._watchdog.updated()
        if self._told:
            self._told(images)
        if self._profiler:
            self._profiler.step()

    def lap(self) -> dict[str, float]:
        """Return the seconds of each part since the last lap."""
        return self._clock.lap()

    def totals(self) -> dict[str, float]:
        """Return the seconds of each part since the start."""
        self._clock.lap()
        return self._clock.totals

    def __enter__(self) -> Self:
        self._open.enter_context(timed_collectives(self._clock))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._open.close()
