"""Delivery of a run's journal to MLflow: every row once, whatever goes away, dies or is repeated meanwhile.

`Delivery` sends the journal with stored timestamps. A record that is delivered twice has the same bytes, and MLflow keeps
one, so a crash at any moment costs nothing but repetition. `pipeline.tracking.tracker` calls it beside a training, `biggan
sync` after.
"""

import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import ConfigError, DataError
from pipeline.storage import trusted_stores
from pipeline.storage.containment import inside
from pipeline.storage.file_locks import lock_file
from pipeline.tracking import mlflow_records, moved_store
from pipeline.tracking.delivered import DELIVERED, NODE_JOURNALS, delivered, note_delivered, note_undelivered, undelivered
from pipeline.tracking.journal import figures_path, journal_path, read, read_file
from pipeline.tracking.mlflow_errors import Refused, first_line, is_from_store, mlflow_refusal
from pipeline.tracking.mlflow_store import artifacts_beside, check_artifacts, check_version, connect, sqlite_file, store_uri
from pipeline.tracking.records import (
    ArtifactRecord,
    CloseRecord,
    ImageRecord,
    MetricsRecord,
    Opening,
    OpenRecord,
    Record,
    TextRecord,
)
from pipeline.wording import hide_secrets

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric
    from mlflow.exceptions import MlflowException

RUN_UID_TAG = "biggan.run_uid"
_LIMITS = {"metrics": 1000, "params": 100, "tags": 100}  # the API's, for one request


class Delivery:
    """Delivers one run's journals to MLflow. A call may raise whatever the network does; calling again goes on.

    Args:
        run_dir: the run's folder.
        uri: an MLflow other than the one that the last process that took the run up has named.

    Raises ConfigError for a folder without a run.
    """

    def __init__(self, run_dir: Path, uri: str | None = None):
        records = [record for record, _ in read(run_dir) if isinstance(record, OpenRecord)]
        if not records:
            raise ConfigError(f"{run_dir} is not the folder of a training (no {journal_path(run_dir).name} with a run in it)")
        opening = records[-1].open
        self.run_dir, self.uid, self.experiment = run_dir, opening.uid, opening.experiment
        self._began = records[0].time
        own = store_uri(run_dir, opening.uri)
        self.uri = store_uri(run_dir, uri) if uri else own
        self._own = self.uri == own
        self.mode = opening.mode
        self.client: MlflowClient | None = None
        self.run_id: str | None = None
        self.rows = self.files = 0
        """Metric rows, and images and other artifacts, that have been sent."""
        self.refused: list[str] = []
        """Records that MLflow does not take, and why. They were left out, for they would hold up all that come after."""
        begun = (run_dir / DELIVERED).exists()
        self._known = undelivered(run_dir).get("refused", []) if begun else []
        file = None if uri else sqlite_file(opening.uri or "")
        if file and not file.is_absolute() and not file.exists() and begun:  # of an older version's start
            raise ConfigError(
                f"{run_dir} is tracked at {opening.uri}, a path from the folder where its training was started, and "
                "there is no such file here: change to that folder"
            )
        if uri is None:
            trusted_stores.check_send(run_dir, self.uri)

    def deliver(self) -> str:
        """Send all that the journals hold and the store lacks; returns the MLflow run's id. Raises Refused, among others.

        What keeps it from that is in RUN/tracking.json until a later call succeeds.
        """
        try:
            with self._alone():
                run_id = self._deliver()
        except Exception as error:
            no = mlflow_refusal(error, self.uri) if is_from_store(error) else None
            self._note(first_line(no or error))
            if no:
                raise no from error
            raise
        self._note(None)
        return run_id

    def _deliver(self) -> str:
        if self.client is None:
            moved_store.settle(self.uri)
            check_version(self.uri)
            self.client = connect(self.uri)
        from mlflow.exceptions import MlflowException

        try:
            if self.run_id is None:
                self.run_id = self._get_or_create_run(self.client)
                check_artifacts(self.client, self.run_id, self.uri, self.run_dir)
            others = [*sorted(self.run_dir.glob(NODE_JOURNALS)), figures_path(self.run_dir)]
            for path in [journal_path(self.run_dir), *others]:
                inside(self.run_dir, str(path.relative_to(self.run_dir)), self.run_dir)  # no link to another's journal
                self._ship(self.client, self.run_id, path)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                self.run_id = None  # purged, or the server has lost its data: the next call makes the run anew, with all rows
            raise
        return self.run_id

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """One process at a time: two that make the tables of one sqlite file break it, and other commands deliver."""
        with (self.run_dir / "mlflow.lock").open("w") as file:
            lock_file(file, wait=True)
            yield

    def _get_or_create_run(self, client: "MlflowClient") -> str:
        from mlflow.entities import ViewType

        if experiment := client.get_experiment_by_name(self.experiment):
            experiment_id = experiment.experiment_id
            if experiment.lifecycle_stage == "deleted":
                raise Refused(
                    f"MLflow's experiment {self.experiment} has been deleted: `{self._shell} mlflow experiments restore "
                    f"--experiment-id {experiment_id}` brings it back; or train on with another, tracking.experiment=NAME"
                )
        else:
            experiment_id = client.create_experiment(self.experiment, artifacts_beside(self.uri))
        mine = f"tags.`{RUN_UID_TAG}` = '{self.uid}'"
        found = client.search_runs([experiment_id], mine, ViewType.ALL, max_results=10)
        for run in sorted(found, key=lambda run: run.info.lifecycle_stage == "deleted"):
            if run.info.lifecycle_stage == "deleted":
                raise self._deleted(run.info.run_id)
            return str(run.info.run_id)
        created = client.create_run(
            experiment_id, self._began, tags={RUN_UID_TAG: self.uid}, run_name=self.run_dir.resolve().name
        )
        return str(created.info.run_id)

    def _ship(self, client: "MlflowClient", run_id: str, path: Path) -> None:
        batch: list[Metric] = []
        start = end = delivered(self.run_dir).get(run_id, {}).get(path.name, 0)
        for record, end in read_file(path, start):
            if isinstance(record, MetricsRecord):
                batch += mlflow_records.rows(record)
                if len(batch) < _LIMITS["metrics"]:
                    continue
            self._send(client, run_id, metrics=batch)
            batch = []
            self._ship_other(client, run_id, record)
            note_delivered(self.run_dir, run_id, path.name, end)
        self._send(client, run_id, metrics=batch)
        if end > start:
            note_delivered(self.run_dir, run_id, path.name, end)

    def _send(self, client: "MlflowClient", run_id: str, **rows: Sequence[Any]) -> None:
        """Rows of one kind. Where MLflow refuses some, halves of halves find which, and the others go."""
        from mlflow.exceptions import MlflowException

        ((kind, all_rows),) = rows.items()
        for i in range(0, len(all_rows), _LIMITS[kind]):
            part = all_rows[i : i + _LIMITS[kind]]
            try:
                client.log_batch(run_id, **{kind: part}, synchronous=True)
                self.rows += len(part) if kind == "metrics" else 0
            except MlflowException as error:
                self._about_the_record(client, run_id, error)
                if len(part) == 1:
                    self.refused.append(f"{kind[:-1]} {mlflow_records.describe(part[0])}: {first_line(error)}")
                else:
                    half = len(part) // 2
                    self._send(client, run_id, **{kind: part[:half]})
                    self._send(client, run_id, **{kind: part[half:]})

    def _ship_other(self, client: "MlflowClient", run_id: str, record: Record) -> None:
        from mlflow.exceptions import MlflowException

        try:
            match record:
                case OpenRecord():
                    client.update_run(run_id, status="RUNNING")
                    self._log_opening(client, run_id, record.open)
                case ImageRecord():
                    mlflow_records.log_image(client, run_id, self._file(record.file), record)
                case TextRecord():
                    client.log_text(run_id, record.text, record.path)
                case ArtifactRecord():
                    mlflow_records.log_file(client, run_id, self._file(record.artifact))
                case CloseRecord():
                    client.set_terminated(run_id, record.close, end_time=record.time)
        except DataError as error:
            self.refused.append(str(error))
        except MlflowException as error:
            self._about_the_record(client, run_id, error)
            self.refused.append(f"{record}: {first_line(error)}")
        else:
            self.files += isinstance(record, ImageRecord | TextRecord | ArtifactRecord)

    def _file(self, name: str) -> Path:
        """A file that a record names. Raises DataError if it is not in the run's folder."""
        return inside(self.run_dir, name, journal_path(self.run_dir))

    def _log_opening(self, client: "MlflowClient", run_id: str, opening: Opening) -> None:
        """Parameters cannot change in MLflow: the tag `biggan.changed.<key>` holds what a resume has made of one."""
        from mlflow.entities import Param, RunTag

        params, tags = opening.params, opening.tags
        data = client.get_run(run_id).data
        for key in params.keys() & data.params.keys():
            changed = f"biggan.changed.{key}"
            if params[key] != data.params[key] or changed in data.tags:
                tags = {**tags, changed: params[key]}
        self._send(client, run_id, params=[Param(key, value) for key, value in params.items() if key not in data.params])
        self._send(client, run_id, tags=[RunTag(key, value) for key, value in tags.items()])
        if opening.datasets:
            client.log_inputs(run_id, [mlflow_records.dataset(row) for row in opening.datasets])

    def _about_the_record(self, client: "MlflowClient", run_id: str, error: "MlflowException") -> None:
        """Return if MLflow refuses what it was sent; raise if something else is wrong."""
        # This code comes from MLflow itself: what a proxy in front of it says has others.
        if error.error_code != "INVALID_PARAMETER_VALUE":
            raise error
        if client.get_run(run_id).info.lifecycle_stage == "deleted":
            raise self._deleted(run_id) from None

    def _deleted(self, run_id: str) -> Refused:
        return Refused(
            f"the MLflow run {run_id} has been deleted: `{self._shell} mlflow runs restore --run-id {run_id}` brings it back, "
            "`mlflow gc` removes it for good, and a new one with all rows takes its place"
        )

    @property
    def _shell(self) -> str:
        return f"MLFLOW_TRACKING_URI={shlex.quote(hide_secrets(self.uri))}"

    def _note(self, why: str | None) -> None:
        """Keep for `biggan status` why MLflow lacks some of the run; None: it has all that it takes."""
        if self._own:
            note_undelivered(self.run_dir, why, list(dict.fromkeys([*self._known, *self.refused])))
