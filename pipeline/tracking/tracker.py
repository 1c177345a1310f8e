"""Tracking that can neither stop nor slow a training: `Tracker` appends to the run's journal, a daemon thread delivers it.

What could not be delivered (`pipeline.tracking.delivery`) goes out with `biggan sync`, or when the run is next taken up.
"""

import contextlib
import logging
import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import numpy as np
import numpy.typing as npt

from pipeline.bounds import Bounds, check_bounds
from pipeline.images.pillow import png
from pipeline.liveness import Process, this_process
from pipeline.storage import trusted_stores
from pipeline.storage.best_effort import best_effort, tell
from pipeline.tracking.delivery import Delivery
from pipeline.tracking.journal import Journal, journal_path, read
from pipeline.tracking.mlflow_errors import first_line
from pipeline.tracking.mlflow_store import absolute
from pipeline.tracking.records import (
    ArtifactRecord,
    CloseRecord,
    DatasetRow,
    ImageRecord,
    MetricsRecord,
    Opening,
    OpenRecord,
    Record,
    TextRecord,
    now,
)
from pipeline.wording import command, hide_secrets

log = logging.getLogger(__name__)

Status = Literal["FINISHED", "FAILED", "KILLED"]

CLOSE_SECONDS = 30.0
_PARAM_LENGTH = 6000  # MLflow cuts longer values off
_NAME = re.compile(r"[\w./: -]+")


@dataclass(frozen=True)
class TrackingConfig:
    """Where a training is recorded."""

    mode: Literal["auto", "offline", "off"] = "auto"
    """`auto` delivers to MLflow while training. `offline` makes no connection: `biggan sync` delivers, or the next start with
    `auto`. `off` is for runs that nobody wants in MLflow: `biggan sync` passes over them. The journal in the run's folder is
    kept in every case."""
    uri: str | None = None
    """MLflow tracking URI. Default: a sqlite store inside the run's folder, with the artifacts beside it."""
    experiment: str = "biggan"
    """MLflow experiment that the run belongs to; made if it is not there."""
    flush_seconds: Annotated[float, Bounds(gt=0)] = 10.0
    """Seconds between deliveries."""
    system_seconds: Annotated[float, Bounds(ge=0, because="; 0 takes no samples")] = 30.0
    """Seconds between samples of processor, memory, disk, network and GPUs, on every node; 0: none."""

    def __post_init__(self) -> None:
        check_bounds(self)


def _check_name(name: str) -> None:
    # A row that MLflow refuses would be missing there.
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} cannot name a metric, parameter or image: use letters, digits, _ - . / : and spaces")


class Tracker:
    """Records one training. For rank 0 only, made after the heavy imports.

    `run_uid` is the training's own name for itself: a later process with the same one continues the same MLflow run.
    `params` is flat (`pipeline.config.flatten`). Where the run's folder cannot be written, it only warns
    (`pipeline.storage.best_effort`).
    """

    def __init__(
        self,
        config: TrackingConfig,
        run_dir: Path,
        run_uid: str,
        params: Mapping[str, Any],
        tags: Mapping[str, str],
        datasets: Sequence[DatasetRow] = (),
    ):
        self._run_dir = Path(run_dir)
        self._process = this_process()
        self._lost = 0
        flat = {key: hide_secrets(str(value))[:_PARAM_LENGTH] for key, value in params.items()}
        for name in flat:
            _check_name(name)
        opening = Opening(
            uid=run_uid,
            mode=config.mode,
            uri=absolute(config.uri),
            experiment=config.experiment,
            params=flat,
            tags=dict(tags),
            datasets=list(datasets),
            process=cast(Process, self._process),
        )
        self._journal = self._begin(opening)
        trusted_stores.note("send", [absolute(config.uri)])  # a training is the user's word
        self._told: set[str] = set()
        self._closing = threading.Event()
        self._delivery = Delivery(self._run_dir) if self._journal else None
        self._behind = True
        self._thread: threading.Thread | None = None
        if config.mode == "auto" and self._delivery:
            self._thread = threading.Thread(target=self._run, args=(config.flush_seconds,), name="mlflow", daemon=True)
            self._thread.start()

    @property
    def run_id(self) -> str | None:
        """The MLflow run's id; None until MLflow has answered for the first time."""
        return self._delivery.run_id if self._delivery else None

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Record `values` at `step` images. What a resumed run has recorded before its crash is not recorded again."""
        new = {key: float(value) for key, value in values.items() if self._is_new(key, step)}
        for key in new:
            _check_name(key)
        if new:
            self._append(MetricsRecord(time=now(), metrics=new, step=step))

    def image(self, image: npt.NDArray[np.uint8], key: str, step: int) -> None:
        """Record an image, uint8 [H, W, C] with 1 or 3 channels, at `step` images; it stays in the run's `samples/`."""
        _check_name(key)
        data = png(image)
        if not self._is_new(key, step):
            return
        file = Path("samples", f"{key.replace('/', '-')}-{step:010d}.png")
        try:
            (self._run_dir / file).parent.mkdir(exist_ok=True)
            (self._run_dir / file).write_bytes(data)
        except OSError as error:
            self._lose(error)
        else:
            self._append(ImageRecord(time=now(), image=key, step=step, file=str(file)))

    def artifact_text(self, text: str, path: str) -> None:
        """Record `text` as the run's artifact `path`; a later text under the same path replaces it."""
        self._append(TextRecord(time=now(), text=text, path=path))

    def artifact(self, name: str) -> None:
        """Record the file `name` of the run's folder, as it is when it is delivered, as an artifact of that name."""
        self._append(ArtifactRecord(time=now(), artifact=name))

    def close(self, status: Status) -> None:
        """Set the run's status and deliver what is left, for at most `CLOSE_SECONDS`.

        Unless a later start has taken the run up, because this one's node was cut off: the run's end is then for that to tell.
        """
        with best_effort(journal_path(self._run_dir)):
            openings = [record.open.process for record, _ in read(self._run_dir) if isinstance(record, OpenRecord)]
            if openings[-1:] in ([], [self._process]):
                self._append(CloseRecord(time=now(), close=status))
        if self._journal:
            self._journal.close()
        self._closing.set()
        if self._thread is None:
            return
        self._thread.join(CLOSE_SECONDS)
        if self._behind:
            kept = f"MLflow lacks the end of this run; {journal_path(self._run_dir)} keeps it for the next start, or for "
            self._say("away", kept + command("sync", self._run_dir.resolve()))

    def _begin(self, opening: Opening) -> Journal | None:
        """Open the journal with a record of this process; None if its disk fails: an attempt after a rollback has no other."""
        try:
            journal = Journal(self._run_dir)
            journal.append(OpenRecord(time=now(), open=opening))
        except OSError as error:
            self._lose(error)
            return None
        return journal

    def _is_new(self, key: str, step: int) -> bool:
        return self._journal is not None and self._journal.is_new(key, step)

    def _append(self, record: Record) -> None:
        if self._journal is None:
            return
        try:
            self._journal.append(record)
        except OSError as error:
            self._lose(error)

    def _lose(self, error: OSError) -> None:
        tell(journal_path(self._run_dir), error)
        self._lost += 1
        if self._lost.bit_count() == 1:  # at 1, 2, 4, 8 ...
            log.warning("%s: training goes on, without %d of its records so far", error, self._lost)

    def _say(self, kind: str, what: str) -> None:
        """Warn in the log, where a worker's stderr goes, and the first time of its `kind` on the terminal as well."""
        log.warning("%s", what)
        if kind not in self._told:
            self._told.add(kind)
            with contextlib.suppress(OSError, ValueError):  # nobody reads it any more
                print(f"biggan: warning: {what}", flush=True)

    def _run(self, every: float) -> None:
        """The thread: deliver, wait, until closed. Says once that MLflow is away, and once that it is back."""
        delivery, away, told = self._delivery, False, 0
        assert delivery
        while True:
            closing = self._closing.is_set()
            try:
                delivery.deliver()
            except Exception as error:  # whatever a store, a proxy or a driver may raise must not reach the training
                if not away:
                    where = f"MLflow at {hide_secrets(delivery.uri)}"
                    what = f"{where} does not take this run's records ({first_line(error).removeprefix(f'{where}: ')}); "
                    later = f"training goes on; once that is fixed, {command('sync', self._run_dir.resolve())} delivers them"
                    self._say("away", what + later)
                away = True
            else:
                if away:
                    log.warning("MLflow is back and has all of this run's records")
                away = False
            for row in delivery.refused[told:]:
                self._say("refused", f"MLflow refuses a record, which stays in the journal only: {row}")
            told = len(delivery.refused)
            if closing:
                self._behind = away
                return
            self._closing.wait(every)
