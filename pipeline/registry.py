"""The MLflow model registry: versions made from runs, and models found by `models:/` URIs."""

import contextlib
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pipeline.export
from pipeline.errors import ConfigError, StorageError
from pipeline.tracking import Delivery, connect, first_line, hide_password

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.pyfunc import PyFuncModel

    from pipeline.generators import TrainedGenerator

_MODEL_URI = re.compile(r"models:/(?P<name>[^/@:']+)(@(?P<alias>[\w-]+)|/(?P<version>\d+))")


@dataclass(frozen=True)
class Registered:
    """A version in the registry, and whether it was there already."""

    name: str
    version: str
    known: bool


def check_names(name: str, alias: str) -> None:
    """Raises ConfigError for what the registry would refuse, before any work is done."""
    if not name.strip(". ") or set(name) & set("/:@'"):
        raise ConfigError(f"--name {name!r} cannot name a model: leave out / : @ and '")
    if not re.fullmatch(r"[\w-]+", alias) or re.fullmatch(r"latest|v\d+", alias, re.IGNORECASE):
        raise ConfigError(
            f"--alias {alias!r} cannot be an alias: use letters, digits, _ and -, but not `latest` or v<number>, "
            "which MLflow keeps for itself"
        )


def register(delivery: Delivery, trained: "TrainedGenerator", name: str, alias: str) -> Registered:
    """Make `trained` a version of `name` under its training's run, and point `alias` at it. Raises StorageError.

    The same weights are registered once: a second call finds the version by its tag.
    """
    with _store_errors(delivery.uri):
        run_id = delivery.deliver()
        client = _use(delivery.uri)
        version = _find(client, name, trained.weights_sha256)
        known = version is not None
        if version is None:
            version = _create(client, run_id, trained, name)
        client.set_registered_model_alias(name, alias, version.version)
    return Registered(name, str(version.version), known)


def load(uri: str, store: str) -> "PyFuncModel":
    """The model at `uri`, `models:/NAME@ALIAS` or `models:/NAME/VERSION`, in the MLflow at `store`.

    Raises ConfigError if there is no such model, StorageError if the store does not answer.
    """
    found = _MODEL_URI.fullmatch(uri)
    if not found:
        raise ConfigError(f"{uri} is not a model: type models:/NAME@ALIAS or models:/NAME/VERSION")
    with _store_errors(store):
        client = _use(store)
        from mlflow import pyfunc
        from mlflow.exceptions import MlflowException

        try:
            if found["alias"]:
                client.get_model_version_by_alias(found["name"], found["alias"])
            else:
                client.get_model_version(found["name"], found["version"])
        except MlflowException as error:
            if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise
            raise ConfigError(f"{uri} is not in the registry: {_known(client, found['name'])}") from None
        return pyfunc.load_model(uri)


def _use(store: str) -> "MlflowClient":
    """A client of `store`. MLflow looks a model's files up in the process's own store, so that must be the same one."""
    client = connect(store)
    import mlflow

    mlflow.set_tracking_uri(store)
    mlflow.set_registry_uri(store)
    return client


def _find(client: "MlflowClient", name: str, weights_sha256: str) -> "ModelVersion | None":
    versions = client.search_model_versions(f"name = '{name}' and tags.weights_sha256 = '{weights_sha256}'")
    return versions[0] if versions else None


def _create(client: "MlflowClient", run_id: str, trained: "TrainedGenerator", name: str) -> "ModelVersion":
    import mlflow
    from mlflow.models import Model

    run = client.get_run(run_id)
    # Else the model would belong to MLflow's default experiment, which keeps its files below the working directory.
    mlflow.set_experiment(experiment_id=run.info.experiment_id)
    tags = {"weights_sha256": trained.weights_sha256, "images": str(trained.images), "run_id": run_id}
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
def _store_errors(uri: str) -> Iterator[None]:
    """What MLflow raises, as one line. Nothing else is caught: a fault of ours keeps its traceback."""
    try:
        yield
    except Exception as error:
        modules = {kind.__module__.partition(".")[0] for kind in type(error).__mro__}
        if not modules & {"mlflow", "requests", "sqlalchemy"}:
            raise
        raise StorageError(f"MLflow at {hide_password(uri)}: {first_line(error)}") from error
