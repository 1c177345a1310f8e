"""The files of a registered version: fetched once into a new folder, compared with the registry, and only then used."""

import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import ConfigError, DataError, UserError
from pipeline.generation import export
from pipeline.generation.model_address import is_registered
from pipeline.registry import model_digest
from pipeline.registry.versions import find_store, resolve, store_errors, use
from pipeline.storage import trusted_stores
from pipeline.tracking.mlflow_store import sqlite_file
from pipeline.wording import printable

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.pyfunc import PyFuncModel

Refusal = type[UserError]


def load(uri: str, store: str) -> tuple["PyFuncModel", "ModelVersion"]:
    """Return the model that `uri` means in the MLflow at `store`, and its version. Runs the code that was registered with it.

    Raises ConfigError if there is no such model, or if `biggan register` did not make it, DataError if its files are gone or
    are not those that were registered, StorageError if the store does not answer.
    """
    with store_errors(store), tempfile.TemporaryDirectory() as folder:
        client = use(store)
        version = resolve(client, uri)
        if "weights_sha256" not in version.tags:
            raise ConfigError(f"{uri} is no generator that `biggan register` has put there: name one that is")
        files = fetch(client, version, Path(folder))
        from mlflow import pyfunc

        return pyfunc.load_model(str(files)), version


@contextmanager
def local(model: str, tracking_uri: str | None) -> Iterator[str]:
    """Yield `model`; of one in a registry, the folder that its files are in until the context ends. Raises as `load` does."""
    if not is_registered(model):
        yield model
        return
    store = find_store(tracking_uri, model)
    with tempfile.TemporaryDirectory() as folder:
        with store_errors(store):
            client = use(store)
            files = fetch(client, resolve(client, model), Path(folder))
        yield str(files)


def fetch(client: "MlflowClient", version: "ModelVersion", folder: Path, kind: Refusal = DataError) -> Path:
    """Copy a version's files below `folder`, compare the copy with the version's tags, and return where it is.

    The process must `use` its store. Raises DataError if its weights are not there, an error of `kind` if a file is not as it
    was registered. Versions from before digests were kept are told on stderr: only their weights can be compared.
    """
    import mlflow
    from mlflow.artifacts import download_artifacts
    from mlflow.exceptions import MlflowException

    what = f"{version.name} version {version.version}"
    # Not by the version's own URI: MLflow would write its name into the store's files at each look.
    place = client.get_model_version_download_uri(version.name, version.version)
    if file := sqlite_file(mlflow.get_tracking_uri()):  # a server has its own say in where its models are
        trusted_stores.check_read(str(file), place, what)
    down = folder / "model"
    down.mkdir()
    try:
        files = Path(download_artifacts(place, dst_path=str(down)))
    except (MlflowException, OSError) as error:
        if isinstance(error, MlflowException) and "No such" not in str(error) and error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        files = None
    if files is None or not (files / "artifacts" / export.WEIGHTS).is_file():
        raise DataError(f"{what}: no weights found at {place}: bring its files back there")
    model_digest.take_out_additions(files, folder / "aside")
    _compare(files, version, what, kind)
    return files


def _compare(files: Path, version: "ModelVersion", what: str, kind: Refusal) -> None:
    """Raises an error of `kind` for files that are not those of the version's tags. Reads each of them once."""
    try:
        rows = model_digest.list_files(files)
    except DataError as error:
        raise kind(f"{what}: its files are not those that were registered: {error}") from None
    (weights,) = (content for name, _, content in rows if name == f"artifacts/{export.WEIGHTS}")
    if (expected := version.tags.get("weights_sha256")) and weights != expected:
        wanted = printable(expected)
        raise kind(f"{what}: its weights are not those that were registered: sha256 {weights}, not {wanted}")
    if not (registered := version.tags.get(model_digest.FILES)):
        print(
            f"biggan: warning: {what} was registered before digests of files were kept: its weights can be compared, its code "
            "cannot",
            file=sys.stderr,
        )
    elif (found := model_digest.digest(rows)) != registered:
        raise kind(
            f"{what}: its files are not those that were registered: digest {found[:16]}, not {printable(registered[:16])}. "
            "Restore them from a copy, or register its run again under another --name"
        )


def images(version: "ModelVersion") -> int:
    """Return how many real images D had seen. Raises DataError if the version's tag is not a number."""
    text = version.tags.get("images", "")
    if not (text.isascii() and text.isdecimal() and len(text) < 19):
        what = f"{version.name} version {version.version}"
        raise DataError(f"{what}: its tag images is {printable(text[:40])!r}, which is not a number: correct it in MLflow")
    return int(text)
