"""A run's folder may have any name: its own MLflow store is in it, and nothing beside it."""

import os
import shutil
from pathlib import Path

import pytest

from jobs.cli import main
from pipeline.tracking import mlflow_store
from tests.support.tracked_run import only_run, track

NAMES = ["lr=1e-3?", "a%20b", "100%", "c#d", "?mode=ro", "a b", "e%3Ff", "g;h@i:j", "café", "'quoted'"]


@pytest.mark.long
@pytest.mark.parametrize("name", NAMES)
def test_sync_delivers_a_run_of_any_name(tmp_path: Path, empty_store: Path, name: str) -> None:
    run = tmp_path / name
    tracker = track(run, mode="offline")
    tracker.metrics({"loss": 0.5}, 64)
    tracker.close("FINISHED")
    shutil.copy(empty_store, run / "mlflow.db")
    assert main(["sync", str(run)]) == 0
    assert os.listdir(tmp_path) == [name]
    assert only_run(mlflow_store.store_uri(run, None)).data.metrics == {"loss": 0.5}


@pytest.mark.long
def test_a_new_store_is_made_under_its_name(tmp_path: Path) -> None:
    uri = mlflow_store.store_uri(tmp_path / "a?b%20c", None)
    (tmp_path / "a?b%20c").mkdir()
    mlflow_store.connect(uri)
    assert os.listdir(tmp_path) == ["a?b%20c"] and os.listdir(tmp_path / "a?b%20c") == ["mlflow.db"]
    typed = f"sqlite:///{tmp_path}/a%3Fb%2520c/mlflow.db"  # as a user writes it
    assert mlflow_store.absolute(typed) == uri
