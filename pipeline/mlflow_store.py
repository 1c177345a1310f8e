"""An MLflow as this project uses it: where a run's own one is, a client that does not wait for minutes, what it raises."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.wording import hide_secrets

if TYPE_CHECKING:
    from mlflow import MlflowClient

hide_password = hide_secrets

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
    """`uri`, or the run's own sqlite store, by its absolute path: MLflow's default depends on the working directory."""
    return uri or f"sqlite:///{run_dir.resolve() / 'mlflow.db'}"


def first_line(error: Exception) -> str:
    """What `error` says, as one line without the password that a URI in it may carry."""
    line = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
    return hide_password(line)


def is_from_store(error: Exception) -> bool:
    """Whether MLflow, its database or the way there raised it: then it may be over later. Anything else is a fault of ours."""
    return bool({kind.__module__.partition(".")[0] for kind in type(error).__mro__} & {"mlflow", "requests", "sqlalchemy"})


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


def artifacts_beside(uri: str) -> str | None:
    """`artifacts` beside a sqlite file, where MLflow would take the working directory; None where a server knows."""
    if not uri.startswith("sqlite:///"):
        return None
    return (Path(uri.removeprefix("sqlite:///")).resolve().parent / "artifacts").as_uri()
