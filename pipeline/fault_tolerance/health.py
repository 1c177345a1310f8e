"""Health: a run that notices by itself when it goes bad, goes back to where it was well, and tries with other batches.

An update with a NaN or an infinite gradient is skipped by all ranks (`Engine.step`). A run *fails* where that lasts, where
a parameter or an average is no finite number any more, or where gradients stay far above their own past. It then
goes on, in the same processes, from the newest checkpoint from before the trouble, with another order of the data. A run
that fails again and again without getting past the place stops and says what happened. What a check decides is the same on
all ranks; `History.after` is the plan, `pipeline.training.loop` carries it out.

RUN/health.json  failures so far         RUN/events.jsonl  skipped updates, failures, alarms, one JSON object a line
RUN/health.md    why the run has stopped
"""

import contextlib
import gc
import itertools
import json
import math
import statistics
import sys
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import torch
import torch.distributed as dist
from pydantic import Field
from torch import Tensor
from tqdm import tqdm

from model.ema import EMA
from pipeline.bounds import Bounds, check_bounds
from pipeline.checkpoint.format import Checkpoint, Progress
from pipeline.engine import agreement
from pipeline.engine.objective import ObjectiveConfig, ObjectiveState
from pipeline.engine.zero import Engine, Ranks
from pipeline.errors import TrainingError
from pipeline.fault_tolerance.collapse import Signs
from pipeline.fault_tolerance.health_report import explain, message
from pipeline.fault_tolerance.run_mirror import RESTORE, keep
from pipeline.storage.best_effort import best_effort
from pipeline.storage.small_files import BIG, read
from pipeline.tracking.journal import Journal, journal_path
from pipeline.tracking.records import ArtifactRecord, Event, now
from pipeline.tracking.tracker import Tracker

_NORMS = 200  # gradient norms whose median is a network's own past
_LASTING = 20  # updates in a row above it that make a spike; lazy R1 makes one of each 16 large
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


@dataclass(frozen=True)
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


class Norms:
    """Gradient norms of one network against their own past."""

    def __init__(self, factor: float):
        self._factor = factor
        self._past: deque[float] = deque(maxlen=_NORMS)
        self._above: list[int] = []

    def see(self, norm: float, images: int) -> int | None:
        """The image at which a spike began that has lasted by now; None without one."""
        if len(self._past) == _NORMS and norm > self._factor * statistics.median(self._past):
            self._above.append(images)
        else:
            self._above.clear()
            self._past.append(norm)
        return self._above[0] if len(self._above) == _LASTING else None


class Health:
    """Watches one training over all its attempts. Every rank calls every method, at the same place, and decides the same.

    Args:
        config: what counts as bad.
        run: the run's folder.
        ranks: of the run.
        objective: its loss says when D has nothing left to learn.
        uri: where the run is kept, if not in its folder (`pipeline.fault_tolerance.run_mirror`).
    """

    def __init__(self, config: HealthConfig, run: Path, ranks: Ranks, objective: ObjectiveConfig, uri: str | None = None):
        self.config, self.run, self.ranks, self.objective, self.uri = config, run, ranks, objective, uri
        self.history = agreement.from_main(History, _read_history(run) if ranks.main else None, ranks)
        self.tracker: Tracker | None = None
        """Of the attempt, on rank 0, while it is open."""
        self._skipped = 0
        self._last: dict[str, float] = {}

    def begin(self, saved: Progress | None) -> Progress:
        """Start an attempt from a checkpoint, or from nothing; returns the progress to go on with."""
        progress = saved or Progress()
        # A checkpoint from before a rollback does not know of it; one whose run's folder is lost knows more than we.
        self.history = replace(self.history, rollbacks=max(progress.rollbacks, self.history.rollbacks))
        self._start = self._good = self._since = progress.images
        self._skips, self._save_due, self._alarm = 0, False, ""
        self._norms = {key: Norms(self.config.spike) for key in ("grad_norm/d", "grad_norm/g")}
        self._seen: list[dict[str, Tensor]] = []
        self.signs = Signs(self.objective.loss)
        if self.history.rollbacks:
            self._event("start", progress.images, f"going on, order {self.history.rollbacks} of the data")
        return replace(progress, rollbacks=self.history.rollbacks)

    @property
    def lr_scale(self) -> float:
        return float(self.config.rollback_lr**self.history.rollbacks)

    def see(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """Take note of what a step returned; returns it."""
        self._seen.append(values)
        return values

    def failure(
        self, before: Progress, now: Progress, look: bool, engines: Iterable[Engine], ema: EMA, objective: ObjectiveState
    ) -> Failure | None:
        """Whether the update from `before` to `now` ends this attempt. `look`: also look at every number of the state."""
        seen, self._seen = self._seen, []
        skipped = bool(torch.stack([v for values in seen for key, v in values.items() if key.startswith("skipped/")]).any())
        if skipped:
            self._since = self._since if self._skips else before.images
            self._skips, self._skipped = self._skips + 1, self._skipped + 1
            text = f"update {now.g_steps} skipped on all ranks: NaN or infinite gradients ({self._skipped} so far)"
            self._event("skip", now.images, text, say=self._skipped.bit_count() == 1)  # at 1, 2, 4, 8 ...
        else:
            self._skips = 0
        if (skipped or look or self._save_due) and not self._finite(engines, ema, objective):
            return self._failed("parameters or averages are NaN or infinite", now, self._since if skipped else before.images)
        if self._skips > self.config.max_skips:
            return self._failed(f"{self._skips} updates in a row had NaN or infinite gradients", now, self._since)
        if self.config.spike and not skipped:
            for values, (key, norms) in itertools.product(seen, self._norms.items()):
                if key in values and (began := norms.see(float(values[key]), before.images)) is not None:
                    what = f"{key} has been above {self.config.spike:g} times its median since image {began:,}"
                    return self._failed(what, now, began)
        return None

    def _failed(self, reason: str, now: Progress, since: int) -> Failure:
        failure = Failure(reason, now.images, since, self._start, self._good)
        times = self.history.after(failure).in_a_row
        self._event("failure", now.images, f"{reason}: failure {times} of at most {self.config.max_failures} in a row")
        return failure

    def _finite(self, engines: Iterable[Engine], ema: EMA, objective: ObjectiveState) -> bool:
        tensors = [part for engine in engines for part in engine.parts().values()] + list(ema.averages.values())
        # A largest value is NaN where one is; it needs one, and ZeRO-3 may have given this rank none.
        sizes = torch.stack(torch._foreach_norm([t for t in tensors if t.numel()], ord=math.inf))
        bad = not bool(sizes.isfinite().all()) or not all(map(math.isfinite, asdict(objective).values()))
        return self.ranks.sum([torch.tensor(float(bad), device=self.ranks.device)]) == [0.0]

    def wants_save(self, due: bool, end: bool) -> bool:
        """Whether to save now: when it is due, but not amid skipped updates, then as soon as one has been made."""
        self._save_due |= due or bool(self._alarm)
        return self._save_due and (self._skips == 0 or end or bool(self._alarm))

    def wants_last_save(self, now: Progress, engines: Iterable[Engine], ema: EMA, objective: ObjectiveState) -> bool:
        """Whether to save where a run is asked to stop: amid skipped updates too, but never what a resume could not use."""
        if fit := self._finite(engines, ema, objective):
            return fit
        text = "parameters or averages are NaN or infinite: not saved, the last checkpoint stays the newest"
        self._event("failure", now.images, text)
        return False

    def saved(self, now: Progress) -> None:
        self._save_due, self._good = False, now.images

    def report(self, values: dict[str, float], now: Progress, g: Engine, d: Engine) -> None:
        """Look for signs of collapse in a report's means over all ranks and updates."""
        self._last = values
        with g.gathered(), d.gathered():
            found = self.signs.of_report(values, g.module, d.module)
        self._note(found, now)

    def samples(self, images: Tensor | None, now: Progress, g: Engine, d: Engine) -> None:
        """Look for them in what `Recorder.samples` returns."""
        with g.gathered(), d.gathered():
            found = self.signs.of_samples(images, g.module, d.module, self.ranks)
        self._note(found, now)

    def _note(self, found: tuple[dict[str, float], list[str]], now: Progress) -> None:
        values, alarms = found
        if self.tracker:
            self.tracker.metrics(values | {"health/rollbacks": self.history.rollbacks}, now.images)
        for alarm in alarms:
            self._event("alarm", now.images, alarm)
        if alarms and self.config.on_collapse == "stop":
            self._alarm = alarms[0]

    def collapsed(self, now: Progress) -> Failure | None:
        """The end of a run after an alarm, if `on_collapse` says so."""
        if not self._alarm:
            return None
        return Failure(self._alarm, now.images, now.images, self._start, self._good, collapse=True)

    def heal(self, failure: Failure) -> None:
        """Decide what follows: another attempt, or TrainingError and a report. Call it when the attempt's engines are gone."""
        stop = failure.collapse
        if not failure.collapse:
            self.history = self.history.after(failure)
            if stop := self.history.in_a_row >= self.config.max_failures:
                self.history = replace(self.history, in_a_row=0)  # who starts it again has changed something
        said = message(self.run, failure, self.config.max_failures, self.history.furthest)
        if self.ranks.main:
            keep(self.run, "health.json", json.dumps(asdict(self.history)).encode(), self.uri)
            if stop:
                self._event("stop", failure.images, failure.reason)
                keep(self.run, "health.md", explain(self.run, said, self._last, failure.collapse).encode())
                # The attempt's tracker is closed.
                with best_effort(journal_path(self.run)), contextlib.closing(Journal(self.run)) as journal:
                    for name in ("events.jsonl", "health.md"):
                        journal.append(ArtifactRecord(time=now(), artifact=name))
        dist.barrier()
        if stop:
            raise TrainingError(said)
        gc.collect()  # engines and their hooks refer to each other
        if self.ranks.device.type == "cuda":
            torch.cuda.empty_cache()

    def _event(self, kind: str, images: int, text: str, say: bool = True) -> None:
        """Write one line to RUN/events.jsonl, print it, and give MLflow what matters."""
        if not self.ranks.main:
            return
        event = Event(time=time.time(), kind=kind, images=images, rollbacks=self.history.rollbacks, text=text)
        path = self.run / "events.jsonl"
        with best_effort(path), path.open("a") as file:
            file.write(json.dumps(asdict(event)) + "\n")
        if say:
            tqdm.write(f"{images:>10,} img  {kind}: {text}")
            sys.stdout.flush()
        if self.tracker and kind != "skip":
            self.tracker.artifact(path.name)


def _read_history(run: Path) -> History:
    return read(History, run / "health.json", RESTORE) or History()
