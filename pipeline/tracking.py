"""Tracking with MLflow that can neither stop nor slow a training.

`Tracker` appends to the run's journal; a daemon thread delivers the journal with stored timestamps. A record that is
delivered twice has the same bytes, and MLflow keeps one, so a crash at any moment costs nothing but repetition. What
could not be delivered goes out when the run is next taken up.
"""

import fcntl
import json
import logging
import os
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from pipeline.errors import ConfigError
from pipeline.images import png
from pipeline.journal import Journal, Record, journal_path, read

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric

log = logging.getLogger(__name__)

Status = Literal["FINISHED", "FAILED", "KILLED"]

RUN_UID_TAG = "biggan.run_uid"
CLOSE_SECONDS = 30.0
_METRICS_PER_BATCH, _PARAMS_PER_BATCH = 1000, 100  # the API's limits
_PARAM_LENGTH = 6000  # MLflow cuts longer values off
# With MLflow's own 7 retries one call to a dead server blocks for minutes, and a repeated create makes two runs. Its
# check of a model's requirements asks a package index for the versions that are installed here.
_ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_SKIP_PIP_REQUIREMENTS_CHECK": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}
_NAME = re.compile(r"[\w./: -]+")


@dataclass(frozen=True)
class TrackingConfig:
    """Where a training is recorded."""

    mode: Literal["auto", "off"] = "auto"
    """`auto` delivers to MLflow while training; `off` only keeps the journal in the run's folder."""
    uri: str | None = None
    """MLflow tracking URI. Default: a sqlite store inside the run's folder, with the artifacts beside it."""
    experiment: str = "biggan"
    """MLflow experiment that the run belongs to; made if it is not there."""
    flush_seconds: float = 10.0
    """Seconds between deliveries."""

    def __post_init__(self) -> None:
        if not self.flush_seconds > 0:
            raise ValueError(f"flush_seconds={self.flush_seconds}: must be above 0")


def store_uri(run_dir: Path, uri: str | None) -> str:
    """`uri`, or the run's own sqlite store, by its absolute path: MLflow's default depends on the working directory."""
    return uri or f"sqlite:///{run_dir.resolve() / 'mlflow.db'}"


def first_line(error: Exception) -> str:
    """What `error` says, as one line without the password that a URI in it may carry."""
    line = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
    return hide_password(line)


def hide_password(uri: str) -> str:
    """`//user:password@host` -> `//host`, wherever it stands."""
    return re.sub(r"//[^/@\s]*@", "//", uri)


def calm_mlflow() -> None:
    """Set MLflow's defaults for this process, before it is imported; what the user has set stays."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def connect(uri: str) -> "MlflowClient":
    """A client of the tracking store and registry at `uri`; a new sqlite file gets its tables. Takes seconds."""
    calm_mlflow()
    from mlflow import MlflowClient

    path = Path(uri.removeprefix("sqlite:///"))
    if uri.startswith("sqlite:///") and not path.exists():
        _make_store(path)
    return MlflowClient(uri, uri)


def _make_store(path: Path) -> None:
    """A sqlite store with its tables, under its name only when it is whole: a kill half-way would spoil it for good."""
    from mlflow.store.db import utils

    half = path.with_name(f"{path.name}.{os.getpid()}.new")
    engine = utils.create_sqlalchemy_engine(f"sqlite:///{half}")  # type: ignore[no-untyped-call]
    try:
        utils._initialize_tables(engine)  # type: ignore[no-untyped-call]
        engine.dispose()
        os.replace(half, path)
    finally:
        half.unlink(missing_ok=True)


class Delivery:
    """Delivers one run's journal to MLflow. Every call may raise whatever the network does; calling again goes on."""

    def __init__(self, run_dir: Path):
        """To where the last process that took the run up has said. Raises ConfigError for a folder without a run."""
        openings = [record["open"] for record, _ in read(run_dir) if "open" in record]
        if not openings:
            raise ConfigError(f"{run_dir} is not the folder of a training (no {journal_path(run_dir).name} with a run in it)")
        self.run_dir, self.uid, self.experiment = run_dir, openings[-1]["uid"], openings[-1]["experiment"]
        self.uri = store_uri(run_dir, openings[-1]["uri"])
        self.client: MlflowClient | None = None
        self.run_id: str | None = None
        self._state = run_dir / "journal.offset"

    def deliver(self) -> str:
        """Send all that the journal holds and the store lacks; returns the MLflow run's id."""
        with self._alone():
            if self.client is None:
                self.client = connect(self.uri)
            if self.run_id is None:
                self.run_id = self._get_or_create_run(self.client)
            self._ship(self.client, self.run_id)
            return self.run_id

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """One process at a time: two that make the tables of one sqlite file break it, and other commands deliver."""
        with (self.run_dir / "mlflow.lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _get_or_create_run(self, client: "MlflowClient") -> str:
        if experiment := client.get_experiment_by_name(self.experiment):
            experiment_id = experiment.experiment_id
        else:
            experiment_id = client.create_experiment(self.experiment, _artifacts_beside(self.uri))
        found = client.search_runs([experiment_id], f"tags.`{RUN_UID_TAG}` = '{self.uid}'", max_results=1)
        if found:
            return str(found[0].info.run_id)
        created = client.create_run(experiment_id, tags={RUN_UID_TAG: self.uid}, run_name=self.run_dir.resolve().name)
        return str(created.info.run_id)

    def _ship(self, client: "MlflowClient", run_id: str) -> None:
        batch: list[Metric] = []
        start = end = self._offset(run_id)
        for record, end in read(self.run_dir, start):
            if "metrics" in record:
                batch += _rows(record)
            if len(batch) >= _METRICS_PER_BATCH or "metrics" not in record:
                self._send(client, run_id, batch)
                batch = []
                self._ship_other(client, run_id, record)
                self._save_offset(run_id, end)
        self._send(client, run_id, batch)
        if end > start:
            self._save_offset(run_id, end)

    @staticmethod
    def _send(client: "MlflowClient", run_id: str, rows: "list[Metric]") -> None:
        for i in range(0, len(rows), _METRICS_PER_BATCH):
            client.log_batch(run_id, metrics=rows[i : i + _METRICS_PER_BATCH], synchronous=True)

    def _ship_other(self, client: "MlflowClient", run_id: str, record: Record) -> None:
        if "open" in record:
            client.update_run(run_id, status="RUNNING")
            _log_params(client, run_id, record["open"]["params"], record["open"]["tags"])
        elif "image" in record:
            _log_image(client, run_id, self.run_dir / record["file"], record)
        elif "text" in record:
            client.log_text(run_id, record["text"], record["path"])
        elif "close" in record:
            client.set_terminated(run_id, record["close"], end_time=record["time"])

    def _offset(self, run_id: str) -> int:
        """Bytes of the journal that this MLflow run has; 0 if it is another run than last time (another server)."""
        try:
            state = json.loads(self._state.read_text())
        except FileNotFoundError:
            return 0
        return int(state["offset"]) if state["run_id"] == run_id else 0

    def _save_offset(self, run_id: str, offset: int) -> None:
        new = self._state.with_suffix(".offset.new")
        new.write_text(json.dumps({"run_id": run_id, "offset": offset}))
        new.replace(self._state)


def _artifacts_beside(uri: str) -> str | None:
    """`artifacts` beside a sqlite file, where MLflow would take the working directory; None where a server knows."""
    if not uri.startswith("sqlite:///"):
        return None
    return (Path(uri.removeprefix("sqlite:///")).resolve().parent / "artifacts").as_uri()


def _rows(record: Record) -> "list[Metric]":
    from mlflow.entities import Metric

    return [Metric(key, value, record["time"], record["step"]) for key, value in record["metrics"].items()]


def _log_params(client: "MlflowClient", run_id: str, params: dict[str, str], tags: dict[str, str]) -> None:
    """Parameters cannot change in MLflow: the tag `biggan.changed.<key>` holds what a resume has made of one."""
    from mlflow.entities import Param, RunTag

    data = client.get_run(run_id).data
    for key in params.keys() & data.params.keys():
        changed = f"biggan.changed.{key}"
        if params[key] != data.params[key] or changed in data.tags:
            tags = {**tags, changed: params[key]}
    new = [Param(key, value) for key, value in params.items() if key not in data.params]
    for i in range(0, len(new), _PARAMS_PER_BATCH):
        client.log_batch(run_id, params=new[i : i + _PARAMS_PER_BATCH], synchronous=True)
    rows = [RunTag(key, value) for key, value in tags.items()]
    for i in range(0, len(rows), _PARAMS_PER_BATCH):
        client.log_batch(run_id, tags=rows[i : i + _PARAMS_PER_BATCH], synchronous=True)


def _log_image(client: "MlflowClient", run_id: str, path: Path, record: Record) -> None:
    # log_image makes a new name at each call, so a repeated delivery has to look whether the image is there.
    # The WebP thumbnail is the last file that it writes.
    name = f"{record['image'].replace('/', '~')}+step+{record['step']}+timestamp+{record['time']}+"
    for file in client.list_artifacts(run_id, "images"):
        if name in file.path and file.path.endswith(".webp"):
            return
    if not path.exists():
        log.warning("%s has been removed before MLflow had it; the run goes on without this image", path)
        return
    with Image.open(path) as image:
        client.log_image(run_id, image, key=record["image"], step=record["step"], timestamp=record["time"], synchronous=True)


def _check_name(name: str) -> None:
    # One row that MLflow refuses would hold up all that come after it.
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} cannot name a metric, parameter or image: use letters, digits, _ - . / : and spaces")


class Tracker:
    """Records one training. For rank 0 only, made after the heavy imports.

    `run_uid` is the training's own name for itself: a later process with the same one continues the same MLflow run.
    `params` is flat (`pipeline.config.flatten`).
    """

    def __init__(self, config: TrackingConfig, run_dir: Path, run_uid: str, params: Mapping[str, Any], tags: Mapping[str, str]):
        self._run_dir = Path(run_dir)
        self._journal = Journal(self._run_dir)
        flat = {key: str(value)[:_PARAM_LENGTH] for key, value in params.items()}
        for name in flat:
            _check_name(name)
        self._journal.append(
            open={
                "uid": run_uid,
                "uri": config.uri,
                "experiment": config.experiment,
                "params": flat,
                "tags": dict(tags),
            }
        )
        self._closing = threading.Event()
        self._delivery = Delivery(self._run_dir)
        self._behind = True
        self._thread: threading.Thread | None = None
        if config.mode == "auto":
            self._thread = threading.Thread(target=self._run, args=(config.flush_seconds,), name="mlflow", daemon=True)
            self._thread.start()

    @property
    def run_id(self) -> str | None:
        """The MLflow run's id; None until MLflow has answered for the first time."""
        return self._delivery.run_id

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Record `values` at `step` images. What a resumed run has recorded before its crash is not recorded again."""
        new = {key: float(value) for key, value in values.items() if self._journal.is_new(key, step)}
        for key in new:
            _check_name(key)
        if new:
            self._journal.append(metrics=new, step=step)

    def image(self, image: npt.NDArray[np.uint8], key: str, step: int) -> None:
        """Record an image, uint8 [H, W, C] with 1 or 3 channels, at `step` images; it stays in the run's `samples/`."""
        _check_name(key)
        data = png(image)
        if not self._journal.is_new(key, step):
            return
        file = Path("samples", f"{key.replace('/', '-')}-{step:010d}.png")
        (self._run_dir / file).parent.mkdir(exist_ok=True)
        (self._run_dir / file).write_bytes(data)
        self._journal.append(image=key, step=step, file=str(file))

    def artifact_text(self, text: str, path: str) -> None:
        """Record `text` as the run's artifact `path`; a later text under the same path replaces it."""
        self._journal.append(text=text, path=path)

    def close(self, status: Status) -> None:
        """Set the run's status and deliver what is left, for at most `CLOSE_SECONDS`."""
        self._journal.append(close=status)
        self._journal.close()
        self._closing.set()
        if self._thread is None:
            return
        self._thread.join(CLOSE_SECONDS)
        if self._behind:
            log.warning("MLflow lacks the end of this run; %s keeps it for the next start", journal_path(self._run_dir))

    def _run(self, every: float) -> None:
        """The thread: deliver, wait, until closed. Says once that MLflow is away, and once that it is back."""
        away = False
        while True:
            closing = self._closing.is_set()
            try:
                self._delivery.deliver()
            except Exception as error:  # whatever a store, a proxy or a driver may raise must not reach the training
                if not away:
                    what = "MLflow does not take this run's records, training goes on without it: %s"
                    log.warning(what, first_line(error))
                away = True
            else:
                if away:
                    log.warning("MLflow is back and has all of this run's records")
                away = False
            if closing:
                self._behind = away
                return
            self._closing.wait(every)
