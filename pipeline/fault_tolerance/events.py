"""RUN/events.jsonl: skipped updates, failures, alarms and rollbacks of a run, one JSON object a line."""

import json
import sys
import time
from dataclasses import asdict
from pathlib import Path

from tqdm import tqdm

from pipeline.checkpoint.format import Progress
from pipeline.engine.ranks import Ranks
from pipeline.storage.best_effort import best_effort
from pipeline.tracking.records import Event
from pipeline.tracking.tracker import Tracker


class Events:
    """Writes them on rank 0 alone. `tracker`: that of the attempt, on rank 0, to give MLflow what matters."""

    def __init__(self, run: Path, ranks: Ranks, tracker: Tracker | None = None):
        self._path, self._main, self._tracker = run / "events.jsonl", ranks.main, tracker

    def write(self, kind: str, at: Progress, text: str, say: bool = True) -> None:
        """Append one line, print it if it is to be said, and send MLflow the file, except for skipped updates."""
        if not self._main:
            return
        event = Event(time=time.time(), kind=kind, images=at.images, rollbacks=at.rollbacks, text=text)
        with best_effort(self._path), self._path.open("a") as file:
            file.write(json.dumps(asdict(event)) + "\n")
        if say:
            tqdm.write(f"{at.images:>10,} img  {kind}: {text}")
            sys.stdout.flush()
        if self._tracker and kind != "skip":
            self._tracker.artifact(self._path.name)
