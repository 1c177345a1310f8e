"""What an earlier version wrote continues to work: shards, a run with checkpoints and an MLflow store, and registered models.

`fixtures/formats/make.sh 4789229` wrote `2026-11-30.tar.xz` with the code of that commit, in a folder that is gone.
"""

import json
import socket
import sqlite3
import tarfile
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from jobs.cli import main
from tests.support.tiny_runs import train_forked

OLD = Path(__file__).parent / "fixtures" / "formats" / "2026-11-30.tar.xz"

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of then, in another place, as the working directory."""
    with tarfile.open(OLD) as tar:
        tar.extractall(tmp_path, filter="data")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path


@pytest.fixture
def store(old: Path) -> Iterator[list[str]]:
    """Arguments that name its registry. MLflow keeps the address of a store for the whole process."""
    yield ["--tracking-uri", "run"]
    import mlflow

    mlflow.set_tracking_uri(None)
    mlflow.set_registry_uri(None)


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def losses(journal: Path) -> dict[int, list[float]]:
    """The losses of D and G after so many images."""
    records = [json.loads(line) for line in journal.read_text().splitlines()]
    metrics = [record for record in records if "loss/d" in record.get("metrics", {})]
    return {record["step"]: [record["metrics"]["loss/d"], record["metrics"]["loss/g"]] for record in metrics}


def difference(one: Path, other: Path) -> int:
    """How far the pixels of two pictures are apart, of 255."""
    first, second = (np.asarray(Image.open(path)).astype(int) for path in (one, other))
    assert first.shape == second.shape and first.std() > 1
    return int(abs(first - second).max())


def test_old_shards_are_read_and_measured(old: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in ("shards/train", "shards/test", "idx"):
        assert main(["index", folder, "--verify"]) == 0
        assert "every checksum is right" in capsys.readouterr().out
    assert read(old / "shards/train/manifest.json")["fingerprint"] == read(old / "run/run.json")["dataset"]
    assert main(["doctor", "--data", "shards/train", "--seconds", "0.5"]) == 0
    assert main(["index", "tars/train.tar", "--out", "again"]) == 0
    assert read(old / "again/manifest.json")["shards"] == read(old / "idx/manifest.json")["shards"][1:]


@pytest.mark.slow
def test_an_old_run_is_resumed_where_it_was(old: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "run"]) == 0
    assert "48" in capsys.readouterr().out
    assert main(["checkpoint", "verify", "run"]) == 0
    uid = read(old / "run/run.json")["uid"]
    assert "resuming at image 48 of 96" in train_forked("tiny.yaml", old / "run", ranks=1)
    status = read(old / "run/status.json")
    assert (status["state"], status["images"]) == ("finished", 96) and read(old / "run/run.json")["uid"] == uid
    # The same images, draws and optimizer states as in the run that the old code did in one go.
    ours, theirs = losses(old / "run/journal.jsonl"), losses(old / "whole/journal.jsonl")
    assert sorted(ours) == sorted(theirs) == [24, 48, 72, 96]
    for images in (72, 96):
        assert ours[images] == pytest.approx(theirs[images], rel=1e-4)
    with closing(sqlite3.connect("run/mlflow.db")) as store:
        told = store.execute("SELECT step, COUNT(*) FROM metrics WHERE key = 'loss/d' GROUP BY step").fetchall()
    assert sorted(told) == [(24, 1), (48, 1), (72, 1), (96, 1)]
    assert main(["report", "run"]) == 0


@pytest.mark.slow
def test_what_an_old_version_drew_is_drawn_again(old: Path, store: list[str]) -> None:
    for model, options, drawn in (
        ("run", ["--standing", "64"], "run"),
        ("run", ["--standing", "64", "--checkpoint", "24"], "first"),
        ("models:/tiny@champion", store, "champion"),
    ):
        assert main(["sample", model, f"{drawn}.png", "--per-class", "2", *options]) == 0
        assert difference(old / f"{drawn}.png", old / f"drawn/{drawn}.png") <= 1


@pytest.mark.slow
def test_old_versions_are_promoted_rolled_back_exported_and_served(
    old: Path, store: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """The gate loads the model in a process that has nothing of ours."""
    assert main(["promote", "tiny/2", *store]) == 0
    assert "version 2 is champion (before: 1): FID[clf-" in capsys.readouterr().out
    assert main(["rollback", "tiny", *store]) == 0
    assert "tiny version 1 is champion again (before: 2)" in capsys.readouterr().out
    draw = ["--per-class", "2"]
    assert main(["export", "models:/tiny@champion", "exported", "--format", "safetensors", *store]) == 0
    assert main(["sample", "exported", "exported.png", *draw]) == 0
    with served("models:/tiny@champion") as url:
        assert main(["sample", url, "served.png", *draw]) == 0
    for drawn in ("exported", "served"):
        assert difference(old / f"{drawn}.png", old / "drawn/champion.png") <= 1


@contextmanager
def served(model: str) -> Iterator[str]:
    """The server of `mlflow models serve`, in this process."""
    import mlflow
    import uvicorn
    from mlflow.pyfunc import scoring_server

    server = uvicorn.Server(uvicorn.Config(scoring_server.init(mlflow.pyfunc.load_model(model)), log_level="error"))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()
