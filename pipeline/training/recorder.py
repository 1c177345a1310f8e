"""What a person sees of a run while it trains: progress lines, metrics, sample sheets; and where the time goes."""

import time
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Self

from torch import Tensor
from tqdm import tqdm

from pipeline.checkpoint.format import Progress
from pipeline.data.loader import DataLoader
from pipeline.fault_tolerance.watchdog import Watchdog
from pipeline.profiling.mfu import efficiency
from pipeline.storage.best_effort import best_effort
from pipeline.tracking.tracker import Status, Tracker
from pipeline.training.figures import Report, metrics, progress_line, slow_rank
from pipeline.training.opening import open_tracker, opening_lines
from pipeline.training.phases import Phases
from pipeline.training.sample_sheet import record_sheet
from pipeline.training.setup import Setup
from pipeline.training.train_state import TrainState


class Recorder:
    """Sums up what the steps return and, on rank 0, prints and tracks it. Every rank calls every method."""

    def __init__(self, setup: Setup, loader: DataLoader, start: Progress, watchdog: Watchdog):
        self._setup, self._ranks, self._loader, self._watchdog = setup, setup.ranks, loader, watchdog
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}
        self._efficiency = efficiency(setup.config, setup.ranks)
        self._phases = Phases(setup, start.images, watchdog, self._say)
        self._began = self._last_time = time.monotonic()
        self._start_images = self._last_images = start.images
        self.tracker: Tracker | None = None
        """On rank 0."""
        self.status: Status = "FINISHED"
        """How the attempt ends, unless by an exception."""
        if not self._ranks.main:
            return
        self.tracker, total = open_tracker(setup, start.images), setup.config.total_images
        self._bar = tqdm(total=total, initial=start.images, unit="img", unit_scale=True, disable=None)
        for line in opening_lines(setup, start.images, loader):
            self._say(line)

    def _say(self, line: str) -> None:
        if not self._bar.disable:
            self._bar.write(line)
        else:
            print(line, flush=True)

    def timed(self, part: str) -> AbstractContextManager[None]:
        """See `Phases.timed`."""
        return self._phases.timed(part)

    def add(self, values: dict[str, Tensor]) -> None:
        """Add what a step returned to the next report."""
        for key, value in values.items():
            self._sums[key] = self._sums[key] + value if key in self._sums else value.clone()
            self._counts[key] = self._counts.get(key, 0) + 1

    def updated(self, progress: Progress) -> None:
        """An update is done."""
        self._phases.updated(progress.images)

    def report(self, progress: Progress, lr_scale: float) -> dict[str, float]:
        """Print one line and track one set of metrics; returns the means over the updates since then, and over all ranks."""
        with self.timed("logging"):
            keys = sorted(self._sums)
            sums = self._ranks.sum([self._sums[key].to(self._ranks.device) for key in keys])
            values = {key: total / self._ranks.world_size / self._counts[key] for key, total in zip(keys, sums, strict=True)}
            spread, parts, now = self._watchdog.spread(), self._phases.lap(), time.monotonic()
            speed = (progress.images - self._last_images) / (now - self._last_time)
            self._sums, self._counts, self._last_time, self._last_images = {}, {}, now, progress.images
            if self.tracker:
                report = Report(
                    setup=self._setup,
                    images=progress.images,
                    values=values,
                    speed=speed,
                    mfu=self._efficiency.mfu(speed),
                    parts=parts,
                    spread=spread,
                    lr_scale=lr_scale,
                    bad_samples=self._loader.quarantine.count(),
                )
                self._tell(report, self.tracker)
        return values

    def _tell(self, report: Report, tracker: Tracker) -> None:
        self._bar.update(report.images - self._bar.n)
        self._say(progress_line(report))
        if line := slow_rank(report):
            self._say(line)
        tracker.metrics(metrics(report), report.images)

    def samples(self, progress: Progress, state: TrainState) -> Tensor | None:
        """Track a sheet of EMA samples. Collective; returns it on rank 0, as `record_sheet` does."""
        averages = state.g.whole(state.ema.averages)
        if not self.tracker:
            return None
        with self.timed("samples"):
            return record_sheet(self.tracker, state, averages, progress.images)

    def __enter__(self) -> Self:
        self._phases.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._phases.__exit__(kind, error, trace)
        if not self.tracker:
            return
        self._bar.close()
        print(
            f"{self._last_images - self._start_images:,} images in {time.monotonic() - self._began:.0f} s: "
            + ", ".join(
                f"{part} {seconds:.1f} s" for part, seconds in sorted(self._phases.totals().items(), key=lambda p: -p[1])
            ),
            flush=True,
        )
        if bad := self._loader.quarantine.count():
            print(f"{bad} damaged samples were replaced by others: {self._loader.quarantine.path} lists them", flush=True)
        with best_effort(events := self._setup.run / "events.jsonl"):
            if events.exists():
                self.tracker.artifact(events.name)  # as it is at the end
        self.tracker.close("FAILED" if error else self.status)
