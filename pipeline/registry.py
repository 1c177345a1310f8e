"""The MLflow model registry: versions made from runs, and models found by `models:/` URIs."""

import contextlib
import hashlib
import io
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pipeline.export
from pipeline import evaluations
from pipeline.errors import ConfigError, StorageError
from pipeline.evaluations import Evaluation
from pipeline.mlflow_store import connect, first_line, hide_password, is_from_store
from pipeline.tracking import Delivery

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.pyfunc import PyFuncModel

    from pipeline.generators import TrainedGenerator

CHAMPION = "champion"
"""The alias that only `biggan promote` and `biggan rollback` move."""

_MODEL_URI = re.compile(r"models:/(?P<name>[^/@:']+)(@(?P<alias>[\w-]+)|/(?P<version>\d+))")


@dataclass(frozen=True)
class Registered:
    """A version in the registry, and whether it was there already."""

    name: str
    version: str
    known: bool
    evaluations: tuple[Evaluation, ...] = ()
    """Of its tags, the one that decides first."""


def check_names(name: str, alias: str) -> None:
    """Raises ConfigError for what the registry would refuse, before any work is done."""
    if not name.strip(". ") or set(name) & set("/:@'"):
        raise ConfigError(f"--name {name!r} cannot name a model: leave out / : @ and '")
    check_alias("--alias", alias)
    if alias.lower() == CHAMPION:
        raise ConfigError(f"--alias {alias}: only `biggan promote` moves it, which compares first; leave --alias out")


def check_alias(flag: str, alias: str) -> None:
    """Raises ConfigError for what cannot be an alias."""
    if not re.fullmatch(r"[\w-]+", alias) or re.fullmatch(r"latest|v\d+", alias, re.IGNORECASE):
        raise ConfigError(
            f"{flag} {alias!r} cannot be an alias: use letters, digits, _ and -, but not `latest` or v<number>, "
            "which MLflow keeps for itself"
        )


def find_store(uri: str | None, model: str) -> str:
    """The MLflow that has `model`: `uri`, the one where the run in the folder `uri` is tracked, or $MLFLOW_TRACKING_URI."""
    uri = uri or os.environ.get("MLFLOW_TRACKING_URI")
    if not uri:
        raise ConfigError(
            f"{model}: say which MLflow has it, with --tracking-uri (a URI, or the folder of a run that is "
            "tracked there) or MLFLOW_TRACKING_URI"
        )
    return uri if "://" in uri else Delivery(Path(uri)).uri


def register(
    delivery: Delivery,
    trained: "TrainedGenerator",
    name: str,
    alias: str,
    found: Sequence[Evaluation] = (),
    named: bool = False,
) -> Registered:
    """Make `trained` a version of `name` under its training's run, and point `alias` at it. Raises StorageError.

    The same weights are registered once: a second call finds the version by its tag. The evaluations `found` become tags, the
    first of them the one that decides if it was `named` (see `evaluations.new_tags`).
    """
    with store_errors(delivery.uri):
        run_id = delivery.deliver()
        client = use(delivery.uri)
        version = find(client, name, trained.weights_sha256)
        known = version is not None
        if version is None:
            config = hashlib.sha256((delivery.run_dir / "config.yaml").read_bytes()).hexdigest()
            version = _create(client, run_id, trained, name, config)
        tags = evaluations.new_tags(version.tags, found, named)
        for key, value in tags.items():
            client.set_model_version_tag(name, version.version, key, value)
        client.set_registered_model_alias(name, alias, version.version)
    held = evaluations.of_tags(version.tags | tags, f"{name} version {version.version}")
    return Registered(name, str(version.version), known, tuple(held))


def load(uri: str, store: str) -> "PyFuncModel":
    """The model at `uri`, `models:/NAME@ALIAS` or `models:/NAME/VERSION`, in the MLflow at `store`.

    Raises ConfigError if there is no such model, StorageError if the store does not answer.
    """
    with store_errors(store):
        client = use(store)
        resolve(client, uri)
        from mlflow import pyfunc

        return pyfunc.load_model(uri)


def resolve(client: "MlflowClient", uri: str) -> "ModelVersion":
    """The version that `uri` means, as in `load`. Raises ConfigError."""
    found = _MODEL_URI.fullmatch(uri)
    if not found:
        raise ConfigError(f"{uri} is not a model: type models:/NAME@ALIAS or models:/NAME/VERSION")
    from mlflow.exceptions import MlflowException

    try:
        if found["alias"]:
            return client.get_model_version_by_alias(found["name"], found["alias"])
        return client.get_model_version(found["name"], found["version"])
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        raise ConfigError(f"{uri} is not in the registry: {_known(client, found['name'])}") from None


def download(version: "ModelVersion", folder: Path) -> Path:
    """The files of a version, below `folder`. The process must `use` its store."""
    from mlflow.artifacts import download_artifacts

    return Path(download_artifacts(f"models:/{version.name}/{version.version}", dst_path=str(folder)))


def weights_sha256(model: Path) -> str:
    """Of the weights in a model's folder; empty if there are none."""
    file = model / "artifacts" / pipeline.export.WEIGHTS
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else ""


def use(store: str) -> "MlflowClient":
    """A client of `store`. MLflow looks a model's files up in the process's own store, so that must be the same one."""
    client = connect(store)
    import mlflow

    mlflow.set_tracking_uri(store)
    mlflow.set_registry_uri(store)
    return client


def find(client: "MlflowClient", name: str, weights_sha256: str) -> "ModelVersion | None":
    """The version of `name` with these weights."""
    versions = client.search_model_versions(f"name = '{name}' and tags.weights_sha256 = '{weights_sha256}'")
    return versions[0] if versions else None


def _create(client: "MlflowClient", run_id: str, trained: "TrainedGenerator", name: str, config_sha256: str) -> "ModelVersion":
    import mlflow
    from mlflow.models import Model

    run = client.get_run(run_id)
    # Else the model would belong to MLflow's default experiment, which keeps its files below the working directory.
    mlflow.set_experiment(experiment_id=run.info.experiment_id)
    tags = {"weights_sha256": trained.weights_sha256, "images": str(trained.images), "run_id": run_id}
    tags["config_sha256"] = config_sha256
    for key in ("git_commit", "dataset_fingerprint"):
        tags[key] = run.data.tags[f"biggan.{key}"]
    # Model.log and not pyfunc.log_model, which would take the run up as its own and set another status at the end.
    logged = Model.log(
        None, pipeline.export, name="generator_ema", run_id=run_id, step=trained.images, tags=tags, trained=trained
    )
    with contextlib.redirect_stderr(io.StringIO()):  # it announces each step there
        return mlflow.register_model(f"models:/{logged.model_id}", name, tags=tags)


def _known(client: "MlflowClient", name: str) -> str:
    """What the user may have meant: the model's aliases and newest version, or the names there are."""
    versions = client.search_model_versions(f"name = '{name}'", order_by=["version_number DESC"], max_results=1)
    if versions:
        aliases = ", ".join(f"@{alias}" for alias in client.get_registered_model(name).aliases) or "no alias"
        return f"{name} has {aliases} and versions up to {versions[0].version}"
    names = ", ".join(model.name for model in client.search_registered_models(max_results=20)) or "nothing"
    return f"it has {names}"


@contextmanager
def store_errors(uri: str) -> Iterator[None]:
    """What MLflow raises, as one line. Nothing else is caught: a fault of ours keeps its traceback."""
    try:
        yield
    except Exception as error:
        if not is_from_store(error):
            raise
        raise StorageError(f"MLflow at {hide_password(uri)}: {first_line(error)}") from error
