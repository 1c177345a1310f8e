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

import pipeline.generation.export
from pipeline.errors import ConfigError
from pipeline.registry import model_digest
from pipeline.runs import evaluations
from pipeline.runs.evaluations import Evaluation
from pipeline.tracking import moved_store
from pipeline.tracking.delivery import Delivery
from pipeline.tracking.mlflow_errors import as_line, is_from_store
from pipeline.tracking.mlflow_store import connect, sqlite_file, store_uri
from pipeline.wording import hide_secrets

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.models import Model

    from pipeline.generation.load import TrainedGenerator

CHAMPION = "champion"
"""The alias that only `biggan promote` and `biggan rollback` move."""

_MODEL_URI = re.compile(r"models:/(?P<name>[^/@:']+)(@(?P<alias>[\w-]+)|/(?P<version>\d+|latest))?", re.IGNORECASE)
_LOGGED = re.compile(r"runs:/.*|models:/m-[0-9a-f]{32}")
"""What MLflow can load and no registry has: it has neither a version nor tags."""
_REGISTRY = "MLFLOW_REGISTRY_URI"


@dataclass(frozen=True)
class Registered:
    """A version in the registry, and whether it was there already."""

    name: str
    version: str
    known: bool
    evaluations: tuple[Evaluation, ...] = ()
    """Of its tags, the one that decides first."""


def check_names(name: str, alias: str) -> None:
    """Raises ConfigError for what the registry would refuse, or could not find again, before any work is done."""
    if not name.strip(".") or name != name.strip() or not name.isprintable() or set(name) & set("/:@'?"):
        raise ConfigError(
            f"--name {name!r} cannot name a model: leave out / : @ ' ? and what does not print, and spaces at its ends"
        )
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


def model_uri(text: str, alias: str = "") -> str:
    """Return `text` as a `models:/` URI, which it may be already; a name alone gets the `alias`, if there is one."""
    if text.startswith("runs:/"):
        return text
    name = text.removeprefix("models:/")
    return f"models:/{name}" if not alias or re.search("[@/]", name) else f"models:/{name}@{alias}"


def find_store(uri: str | None, model: str, new: bool = False) -> str:
    """Return the MLflow that has `model`: `uri`, that of the run in the folder `uri`, or $MLFLOW_TRACKING_URI.

    Raises ConfigError if none is named, or a sqlite file is not there, unless a `new` one will do.
    """
    uri = uri or os.environ.get("MLFLOW_TRACKING_URI")
    if not uri:
        raise ConfigError(
            f"{model}: say which MLflow has it, with --tracking-uri (a URI, or the folder of a run that is "
            "tracked there) or MLFLOW_TRACKING_URI"
        )
    store = store_uri(Path(), uri) if "://" in uri else Delivery(Path(uri)).uri
    check_registry(store)
    file = sqlite_file(store)
    if file and not file.exists() and not new:
        raise ConfigError(f"{model}: there is no MLflow store {file}: deliver a run to it first, or name another")
    return store


def check_registry(store: str) -> None:
    """Raises ConfigError if MLFLOW_REGISTRY_URI names another registry than that of `store`: here both are one MLflow."""
    other = os.environ.get(_REGISTRY)
    if other and store_uri(Path(), other) != store:
        raise ConfigError(
            f"{_REGISTRY}={hide_secrets(other)} is another MLflow than {hide_secrets(store)}, and models are registered "
            f"where their runs are tracked: unset {_REGISTRY}, or name its MLflow everywhere"
        )


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
        check_registry(delivery.uri)
        run_id = delivery.deliver()
        client = use(delivery.uri, write=True)
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


def resolve(client: "MlflowClient", uri: str) -> "ModelVersion":
    """Return the version that `uri` means: models:/NAME@ALIAS, models:/NAME/VERSION or models:/NAME/latest.

    Raises ConfigError for what is not there, and for a name alone, with the aliases and versions that it has.
    """
    found = _MODEL_URI.fullmatch(uri)
    if not found or _LOGGED.fullmatch(uri):
        what = "names files of a run" if _LOGGED.fullmatch(uri) else "is not a model"
        raise ConfigError(
            f"{uri} {what}: name a registered version, as models:/NAME@ALIAS, models:/NAME/VERSION or models:/NAME/latest"
        )
    from mlflow.exceptions import MlflowException

    name, version = found["name"], found["version"] or ""
    try:
        if found["alias"]:
            return client.get_model_version_by_alias(name, found["alias"])
        if version.isdecimal():
            return client.get_model_version(name, version)
        if version and (newest := _newest(client, name)):
            return newest
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
    known = _known(client, name)
    if not found[2] and known.startswith(f"{name} has"):
        raise ConfigError(f"{uri} names no version: {known}; name one, as models:/{name}@ALIAS or models:/{name}/VERSION")
    raise ConfigError(f"{uri} is not in the registry: {known}") from None


def use(store: str, write: bool = False) -> "MlflowClient":
    """Return a client of `store`. MLflow looks a model's files up in the process's own store, so that must be the same one.

    `write`: not only to read, for which a store that was moved need not be changed (`pipeline.tracking.moved_store`).
    """
    if write:
        moved_store.settle(store)
    else:
        store = moved_store.for_reading(store)
    client = connect(store)
    import mlflow

    mlflow.set_tracking_uri(store)
    named = os.environ.get(_REGISTRY)
    mlflow.set_registry_uri(store)  # and the variable, which is the user's
    os.environ.pop(_REGISTRY, None)
    os.environ |= {_REGISTRY: named} if named else {}
    return client


def find(client: "MlflowClient", name: str, weights_sha256: str) -> "ModelVersion | None":
    """The version of `name` with these weights."""
    versions = client.search_model_versions(f"name = '{name}' and tags.weights_sha256 = '{weights_sha256}'")
    return versions[0] if versions else None


class _Flavor:
    """Writes the model, and takes its digests from what is then uploaded: not from a store, where others may write."""

    digests: dict[str, str]

    def save_model(self, path: str, mlflow_model: "Model", trained: "TrainedGenerator", **_: object) -> None:
        pipeline.generation.export.save_model(trained, Path(path), mlflow_model)
        rows = model_digest.list_files(Path(path))
        (golden,) = (content for name, _, content in rows if name == f"artifacts/{pipeline.generation.export.GOLDEN}")
        self.digests = {model_digest.FILES: model_digest.digest(rows), model_digest.GOLDEN: golden}


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
    flavor, options = _Flavor(), {"tags": tags, "trained": trained, "validate_serving_input": False}
    logged = Model.log(None, flavor, name="generator_ema", run_id=run_id, step=trained.images, **options)
    tags |= flavor.digests
    with contextlib.redirect_stderr(io.StringIO()):  # it announces each step there
        return mlflow.register_model(f"models:/{logged.model_id}", name, tags=tags)


def _newest(client: "MlflowClient", name: str) -> "ModelVersion | None":
    versions = client.search_model_versions(f"name = '{name}'", order_by=["version_number DESC"], max_results=1)
    return versions[0] if versions else None


def _known(client: "MlflowClient", name: str) -> str:
    """What the user may have meant: the model's aliases and newest version, or the names there are."""
    if newest := _newest(client, name):
        aliases = ", ".join(f"@{alias}" for alias in client.get_registered_model(name).aliases) or "no alias"
        return f"{name} has {aliases} and versions up to {newest.version}"
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
        raise as_line(error, uri) from error
