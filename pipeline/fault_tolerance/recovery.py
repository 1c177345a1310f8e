"""What a run does about its failures: go back to a good checkpoint and try another order of the data, or stop with a report.

`Health` says that an attempt has failed; `History.after` decides what follows, the same on all ranks; `training.loop` does it.

RUN/health.json  failures so far         RUN/health.md    why the run has stopped
"""

import contextlib
import gc
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import torch
import torch.distributed as dist
from pydantic import Field

from pipeline.bounds import Bounds, check_bounds
from pipeline.checkpoint.format import Checkpoint, Progress
from pipeline.engine import agreement
from pipeline.engine.ranks import Ranks
from pipeline.errors import TrainingError
from pipeline.fault_tolerance.events import Events
from pipeline.fault_tolerance.health_report import explain, message
from pipeline.fault_tolerance.run_mirror import RESTORE, keep
from pipeline.storage.best_effort import best_effort
from pipeline.storage.small_files import BIG, read
from pipeline.tracking.journal import Journal, journal_path
from pipeline.tracking.records import ArtifactRecord, now

_EVER = 1 << 62


@dataclass(frozen=True)
class HealthConfig:
    """What a run takes as a sign that it goes bad, and what it does then."""

    max_skips: Annotated[int, Bounds(ge=0)] = 3
    """Updates in a row that may be skipped because a gradient is NaN or infinite; one more is a failure."""
    spike: float = 0.0
    """A failure is also a gradient norm that stays above this many times the median of its last 200 values; 0: never.
    Off by default: where D is sure for a while its gradients vanish, and what follows is large beside them but healthy."""
    max_failures: Annotated[int, Bounds(ge=1, because=", which never rolls back")] = 3
    """Failures in a row, with no checkpoint past the first, of which the last stops the run; the others roll it back."""
    rollback_lr: Annotated[float, Bounds(gt=0, le=1)] = 1.0
    """Factor on both learning rates for each rollback."""
    on_collapse: Literal["warn", "stop"] = "warn"
    """What an alarm of `fault_tolerance.collapse` does: a line and an event, or also a last checkpoint and exit code 79."""

    def __post_init__(self) -> None:
        check_bounds(self)
        if self.spike and not self.spike > 1:
            raise ValueError(f"spike={self.spike}: must be above 1, or 0 for never")


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Why an attempt ended before its time."""

    reason: str
    images: int
    """Where it was noticed."""
    since: int
    """A checkpoint of more images may have the trouble in it already."""
    start: int
    """Where the attempt began."""
    good: int
    """Its newest checkpoint, or `start`."""
    collapse: bool = False
    """An alarm that `on_collapse` turns into an end; going back would not help."""


@dataclass(frozen=True)
class History:
    """The failures of a run so far."""

    rollbacks: Annotated[int, Field(ge=0, le=BIG)] = 0
    in_a_row: Annotated[int, Field(ge=0, le=BIG)] = 0
    """Without a checkpoint past `furthest`."""
    furthest: Annotated[int, Field(ge=-1, le=BIG)] = -1
    good_until: Annotated[int, Field(ge=0, le=_EVER)] = _EVER
    """Checkpoints of more images are not taken, unless they have been saved since the last rollback."""

    def after(self, failure: Failure) -> "History":
        past = failure.good > self.furthest
        # Without a checkpoint of its own an attempt has not replaced those that an earlier failure made doubtful.
        until = failure.since if failure.good > failure.start else min(failure.since, self.good_until)
        return History(self.rollbacks + 1, 1 if past else self.in_a_row + 1, max(self.furthest, failure.images), until)

    def takes(self, checkpoint: Checkpoint) -> bool:
        return checkpoint.images <= self.good_until or checkpoint.progress().rollbacks >= self.rollbacks


class Recovery:
    """A run's failures over all its attempts. Every rank makes one (collective), calls the same, and decides the same.

    Args:
        config: when a run goes back, and when it stops.
        run: the run's folder.
        ranks: of the run.
        uri: where the run is kept, if not in its folder (`pipeline.fault_tolerance.run_mirror`).
    """

    def __init__(self, config: HealthConfig, run: Path, ranks: Ranks, uri: str | None = None):
        self.config, self.run, self.ranks, self._uri = config, run, ranks, uri
        self.history = agreement.from_main(History, _read_history(run) if ranks.main else None, ranks)
        self.skipped = 0
        """Updates, over all attempts of this start."""
        self.last: dict[str, float] = {}
        """The newest report's means."""
        self._events = Events(run, ranks)

    def begin(self, saved: Progress | None) -> Progress:
        """Start an attempt from a checkpoint, or from nothing; returns the progress to continue with."""
        progress = saved or Progress()
        # A checkpoint from before a rollback does not know of it; one whose run's folder is lost knows more than we.
        self.history = replace(self.history, rollbacks=max(progress.rollbacks, self.history.rollbacks))
        progress = replace(progress, rollbacks=self.history.rollbacks)
        if progress.rollbacks:
            self._events.write("start", progress, f"going on, order {progress.rollbacks} of the data")
        return progress

    @property
    def lr_scale(self) -> float:
        return float(self.config.rollback_lr**self.history.rollbacks)

    def heal(self, failure: Failure) -> None:
        """Decide what follows: another attempt, or TrainingError and a report. Call it when the attempt's engines are gone."""
        stop = failure.collapse
        if not failure.collapse:
            self.history = self.history.after(failure)
            if stop := self.history.in_a_row >= self.config.max_failures:
                self.history = replace(self.history, in_a_row=0)  # who starts it again has changed something
        said = message(self.run, failure, self.config.max_failures, self.history.furthest)
        if self.ranks.main:
            keep(self.run, "health.json", json.dumps(asdict(self.history)).encode(), self._uri)
            if stop:
                self._report(failure, said)
        dist.barrier()
        if stop:
            raise TrainingError(said)
        gc.collect()  # engines and their hooks refer to each other
        if self.ranks.device.type == "cuda":
            torch.cuda.empty_cache()

    def _report(self, failure: Failure, said: str) -> None:
        self._events.write("stop", Progress(failure.images, rollbacks=self.history.rollbacks), failure.reason)
        keep(self.run, "health.md", explain(self.run, said, self.last, failure.collapse).encode())
        # The attempt's tracker is closed.
        with best_effort(journal_path(self.run)), contextlib.closing(Journal(self.run)) as journal:
            for name in ("events.jsonl", "health.md"):
                journal.append(ArtifactRecord(time=now(), artifact=name))


def _read_history(run: Path) -> History:
    return read(History, run / "health.json", RESTORE) or History()
