"""Stores of MLflow: where a run's own one is, and clients that do not wait for minutes."""

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

from pipeline.errors import ConfigError
from pipeline.storage.addresses import local_path
from pipeline.storage.temporary import replacing
from pipeline.tracking.mlflow_errors import Refused
from pipeline.wording import hide_secrets, printable

if TYPE_CHECKING:
    from mlflow import MlflowClient

OLDEST_SERVER = 3
"""Major version of the oldest server that runs can be delivered to."""

_DRIVERS = {
    "postgresql": ("psycopg2-binary", "postgresql+psycopg2"),
    "mysql": ("pymysql", "mysql+pymysql"),
    "mssql": ("pymssql", "mssql+pymssql"),
}
"""By database: the package with its driver, and the scheme that takes that."""
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


def store_uri(run_dir: Path, uri: str | None) -> str:
    """Return `uri`, or that of the run's own sqlite store, with an absolute path: MLflow's depend on the working directory."""
    return absolute(uri) or sqlite_uri(run_dir.resolve() / "mlflow.db")


def absolute(uri: str | None) -> str | None:
    """Return `uri`; the file of a `sqlite:///FILE` becomes absolute, against the working directory, and `~` is expanded."""
    file = sqlite_file(uri or "")
    return sqlite_uri(file.absolute()) + "".join((uri or "").partition("?")[1:]) if file else uri


def sqlite_file(uri: str) -> Path | None:
    """Return the file of a `sqlite:///FILE`; None for any other store."""
    found = re.match(r"sqlite(\+\w+)?:///(?!:memory:)([^?]+)", uri)
    return Path(unquote(found[2])).expanduser() if found else None


def sqlite_uri(file: Path) -> str:
    """Return the URI of the store in `file`: SQLAlchemy decodes %25 and the like, and takes what follows ? for options.

    MLflow does not decode, and makes the folder of a plain `sqlite:///` under the name in percent codes; not with a driver.
    """
    place = str(file).replace("%", "%25").replace("?", "%3F")
    return ("sqlite:///" if place == str(file) else "sqlite+pysqlite:///") + place


def calm_mlflow() -> None:
    """Set MLflow's defaults for this process, before it is imported; what the user has set stays."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def connect(uri: str) -> "MlflowClient":
    """Return a client of the tracking store and registry at `uri`; a new sqlite file gets its tables. Takes seconds.

    Raises ConfigError if the driver of a database is not installed.
    """
    calm_mlflow()
    from mlflow import MlflowClient

    if uri.startswith("http"):
        return MlflowClient(uri, uri)
    from mlflow.store.db import utils
    from sqlalchemy.exc import NoSuchModuleError

    utils.MAX_RETRY_COUNT = 0  # MLflow tries a database for minutes, even with a wrong password; the caller decides here
    path = sqlite_file(uri)
    if path and not path.exists():
        _make_store(path)
    try:
        return MlflowClient(uri, uri)
    except (ModuleNotFoundError, NoSuchModuleError) as error:
        kind = uri.partition(":")[0].partition("+")[0]
        package, scheme = _DRIVERS.get(kind, ("DRIVER", f"{kind}+DRIVER"))
        raise ConfigError(
            f"MLflow at {hide_secrets(uri)}: no driver for this database ({error}): `pip install {package}`, and write the "
            f"address as {scheme}://USER:PASSWORD@HOST/NAME"
        ) from None


def check_version(uri: str) -> None:
    """Ask the server at `uri` for its version. Raises Refused below `OLDEST_SERVER`, which has no logged models.

    A proxy may hide the version: then what follows shows whether the server is new enough.
    """
    if not uri.startswith("http"):
        return
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import http_request

    answer = http_request(get_default_host_creds(uri), "/version", "GET")  # type: ignore[no-untyped-call]
    version = re.fullmatch(r"(\d+)\.\d+[\w.+-]*", answer.text.strip()) if answer.status_code == 200 else None
    if version and int(version[1]) < OLDEST_SERVER:
        raise Refused(
            f"MLflow at {hide_secrets(uri)} is version {version[0]}, and a run needs MLflow {OLDEST_SERVER}.0 or newer: "
            "upgrade the server, or name another one"
        )


def _make_store(path: Path) -> None:
    """A sqlite store with its tables, under its name only when it is whole: a kill half-way would spoil it for good."""
    from mlflow.store.db import utils

    with replacing(path) as half:
        engine = utils.create_sqlalchemy_engine(sqlite_uri(half))  # type: ignore[no-untyped-call]
        utils._initialize_tables(engine)  # type: ignore[no-untyped-call]
        engine.dispose()


def artifacts_beside(uri: str) -> str | None:
    """Return `artifacts` beside a sqlite file, where MLflow would take the working directory; None where a server knows."""
    file = sqlite_file(uri)
    return (file.resolve().parent / "artifacts").as_uri() if file else None


def check_artifacts(client: "MlflowClient", run_id: str, uri: str, run_dir: Path) -> None:
    """Raise ConfigError if the store in the run's folder would put artifacts elsewhere: somebody else has made it."""
    file, folder = sqlite_file(uri), run_dir.resolve()
    if not file or file.resolve().parent != folder:
        return
    place = client.get_run(run_id).info.artifact_uri
    if not (path := local_path(place)) or not Path(os.path.normpath(path)).is_relative_to(folder):
        raise ConfigError(
            f"{file} puts artifacts at {printable(hide_secrets(place))[:200]}, outside of its folder: "
            "add --tracking URI to deliver to another MLflow"
        )
