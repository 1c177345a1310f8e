"""Health: a run that notices by itself when it goes bad, goes back to where it was well, and tries with other batches.

An update with a NaN or an infinite gradient is skipped by all ranks (`Engine.step`). A run *fails* where that lasts, where
a parameter or an average is no finite number any more, or where gradients stay far above their own past. It then
continues, in the same processes, from the newest checkpoint from before the trouble, with another order of the data. A run
that fails again and again without getting past the place stops and says what happened. What a check decides is the same on
all ranks; `pipeline.fault_tolerance.recovery` decides what follows.
"""

import itertools
import math
import statistics
from collections import deque
from dataclasses import asdict
from typing import Protocol

import torch
from torch import Tensor

from model.ema import EMA
from pipeline.checkpoint.format import Progress
from pipeline.engine.objective import Objective
from pipeline.engine.zero import Engine
from pipeline.fault_tolerance.collapse import Signs
from pipeline.fault_tolerance.events import Events
from pipeline.fault_tolerance.recovery import Failure, Recovery
from pipeline.tracking.tracker import Tracker

_NORMS = 200  # gradient norms whose median is a network's own past
_LASTING = 20  # updates in a row above it that make a spike; lazy R1 makes one of each 16 large


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


class Watched(Protocol):
    """What a run trains, as far as its health depends on it (`pipeline.training.train_state`)."""

    g: Engine
    d: Engine
    ema: EMA
    objective: Objective


class Health:
    """Watches one attempt. Every rank calls every method, at the same place, and decides the same.

    Args:
        recovery: what counts as bad, and what has happened in the attempts before.
        watched: what is trained.
        start: where the attempt begins, as `Recovery.begin` says.
        tracker: gets what is found, on rank 0.
    """

    def __init__(self, recovery: Recovery, watched: Watched, start: Progress, tracker: Tracker | None):
        self._recovery, self._watched, self._tracker = recovery, watched, tracker
        self._config, self._ranks = recovery.config, recovery.ranks
        self._events = Events(recovery.run, recovery.ranks, tracker)
        self._start = self._good = self._since = start.images
        self._skips, self._save_due, self._alarm = 0, False, ""
        self._norms = {key: Norms(self._config.spike) for key in ("grad_norm/d", "grad_norm/g")}
        self._seen: list[dict[str, Tensor]] = []
        self._signs = Signs(watched.objective.config.loss)

    def see(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """Take note of what a step returned; returns it."""
        self._seen.append(values)
        return values

    def failure(self, before: Progress, now: Progress, look: bool) -> Failure | None:
        """Say whether the update from `before` to `now` ends this attempt. `look`: also at every number of the state."""
        seen, self._seen = self._seen, []
        skipped = bool(torch.stack([v for values in seen for key, v in values.items() if key.startswith("skipped/")]).any())
        if skipped:
            self._since = self._since if self._skips else before.images
            self._skips += 1
            self._recovery.skipped += 1
            total = self._recovery.skipped
            text = f"update {now.g_steps} skipped on all ranks: NaN or infinite gradients ({total} so far)"
            self._events.write("skip", now, text, say=total.bit_count() == 1)  # at 1, 2, 4, 8 ...
        else:
            self._skips = 0
        if (skipped or look or self._save_due) and not self._finite():
            return self._failed("parameters or averages are NaN or infinite", now, self._since if skipped else before.images)
        if self._skips > self._config.max_skips:
            return self._failed(f"{self._skips} updates in a row had NaN or infinite gradients", now, self._since)
        if self._config.spike and not skipped:
            for values, (key, norms) in itertools.product(seen, self._norms.items()):
                if key in values and (began := norms.see(float(values[key]), before.images)) is not None:
                    what = f"{key} has been above {self._config.spike:g} times its median since image {began:,}"
                    return self._failed(what, now, began)
        return None

    def _failed(self, reason: str, now: Progress, since: int) -> Failure:
        failure = Failure(reason=reason, images=now.images, since=since, start=self._start, good=self._good)
        times = self._recovery.history.after(failure).in_a_row
        self._events.write("failure", now, f"{reason}: failure {times} of at most {self._config.max_failures} in a row")
        return failure

    def _finite(self) -> bool:
        engines, objective = (self._watched.g, self._watched.d), self._watched.objective.state
        tensors = [part for engine in engines for part in engine.parts().values()] + list(self._watched.ema.averages.values())
        # A largest value is NaN where one is; it needs one, and ZeRO-3 may have given this rank none.
        sizes = torch.stack(torch._foreach_norm([t for t in tensors if t.numel()], ord=math.inf))
        bad = not bool(sizes.isfinite().all()) or not all(map(math.isfinite, asdict(objective).values()))
        return self._ranks.sum([torch.tensor(float(bad), device=self._ranks.device)]) == [0.0]

    def wants_save(self, due: bool, end: bool) -> bool:
        """Say whether to save now: when it is due, but not amid skipped updates, then as soon as one has been made."""
        self._save_due |= due or bool(self._alarm)
        return self._save_due and (self._skips == 0 or end or bool(self._alarm))

    def wants_last_save(self, now: Progress) -> bool:
        """Say whether to save where a run is asked to stop: amid skipped updates too, but never what a resume could not use."""
        if fit := self._finite():
            return fit
        text = "parameters or averages are NaN or infinite: not saved, the last checkpoint stays the newest"
        self._events.write("failure", now, text)
        return False

    def saved(self, now: Progress) -> None:
        """Take note of a checkpoint."""
        self._save_due, self._good = False, now.images

    def report(self, values: dict[str, float], now: Progress) -> None:
        """Look for signs of collapse in a report's means over all ranks and updates."""
        self._recovery.last = values
        g, d = self._watched.g, self._watched.d
        with g.gathered(), d.gathered():
            found = self._signs.of_report(values, g.module, d.module)
        self._note(found, now)

    def samples(self, images: Tensor | None, now: Progress) -> None:
        """Look for them in what `Recorder.samples` returns."""
        g, d = self._watched.g, self._watched.d
        with g.gathered(), d.gathered():
            found = self._signs.of_samples(images, g.module, d.module, self._ranks)
        self._note(found, now)

    def _note(self, found: tuple[dict[str, float], list[str]], now: Progress) -> None:
        values, alarms = found
        if self._tracker:
            self._tracker.metrics(values | {"health/rollbacks": now.rollbacks}, now.images)
        for alarm in alarms:
            self._events.write("alarm", now, alarm)
        if alarms and self._config.on_collapse == "stop":
            self._alarm = alarms[0]

    def collapsed(self, now: Progress) -> Failure | None:
        """Return the end of a run after an alarm, if `on_collapse` says so."""
        if not self._alarm:
            return None
        at = now.images
        return Failure(reason=self._alarm, images=at, since=at, start=self._start, good=self._good, collapse=True)
