"""A version of one MLflow in another: the files, the tags that speak of them, and where they are from."""

import contextlib
import io
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import ConfigError
from pipeline.registry import model_digest
from pipeline.registry.model_files import fetch
from pipeline.registry.versions import Registered, check_names, find, resolve, store_errors, use
from pipeline.runs import evaluations
from pipeline.tracking.mlflow_store import artifacts_beside
from pipeline.wording import hide_secrets

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

_EXPERIMENT = "biggan"
_DIGESTS = ("weights_sha256", "config_sha256", model_digest.FILES, model_digest.GOLDEN)
_TAGS = (*_DIGESTS, "images", "git_commit", "dataset_fingerprint")
"""What is true of the weights wherever they are. Promotions belong to a registry."""


def copy_version(store: str, uri: str, to: str, name: str | None, alias: str) -> Registered:
    """Make the version `uri` of `store` one of `name` (default: the same) in the MLflow at `to`, with `alias`.

    The same weights are copied once. Raises ConfigError if there is no such version, or if it is not a generator of ours,
    DataError if the weights are not those that were registered, here or there, StorageError.
    """
    with tempfile.TemporaryDirectory() as folder:
        with store_errors(store):
            client = use(store)
            source = resolve(client, uri)
            expected = source.tags.get("weights_sha256")
            if not expected:
                raise ConfigError(f"{uri} has no tag weights_sha256: only what `biggan register` has made is copied")
            name = name or source.name
            check_names(name, alias)
        with store_errors(to):
            client = use(to, write=True)
            found = find(client, name, expected)
        if found is None:
            with store_errors(store):
                model = fetch(use(store), source, Path(folder))
            with store_errors(to):
                client = use(to, write=True)
                found = _create(client, model, source, name, store)
                fetch(client, found, Path(tempfile.mkdtemp(dir=folder)))  # what has arrived is compared, too
                known = False
        else:
            known = True
        with store_errors(to):
            for key, value in evaluations.new_tags(found.tags, evaluations.of_tags(source.tags, uri)).items():
                client.set_model_version_tag(name, found.version, key, value)
            client.set_registered_model_alias(name, alias, found.version)
    return Registered(name, str(found.version), known)


def _create(client: "MlflowClient", model: Path, source: "ModelVersion", name: str, store: str) -> "ModelVersion":
    """A run that holds the files, and a version of `name` from it."""
    import mlflow

    experiment = client.get_experiment_by_name(_EXPERIMENT)
    experiment_id = (
        experiment.experiment_id if experiment else client.create_experiment(_EXPERIMENT, artifacts_beside(client.tracking_uri))
    )
    origin = {
        "src_store": hide_secrets(store),
        "src_name": source.name,
        "src_version": str(source.version),
        "src_run_id": source.run_id or "",
    }
    tags = {key: source.tags[key] for key in _TAGS if key in source.tags} | origin
    run = client.create_run(experiment_id, run_name=f"copy of {source.name} version {source.version}", tags=origin)
    run_id = run.info.run_id
    try:
        client.log_artifacts(run_id, str(model), "model")
        with contextlib.redirect_stderr(io.StringIO()):  # it announces each step there
            version = mlflow.register_model(f"runs:/{run_id}/model", name, tags=tags)
    except BaseException:
        client.set_terminated(run_id, "FAILED")
        raise
    client.set_terminated(run_id)
    return version
