"""The folder of a tracked run, and its store."""

import shutil
from pathlib import Path

import pytest

from pipeline.tracking import mlflow_store


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    return tmp_path / "run"


@pytest.fixture
def store(run_dir: Path, empty_store: Path) -> str:
    """The run's own store, empty."""
    run_dir.mkdir()
    shutil.copy(empty_store, run_dir / "mlflow.db")
    return mlflow_store.store_uri(run_dir, None)
