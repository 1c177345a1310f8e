"""Runs whose folder was moved or copied with their own MLflow store: nothing is read from or written to the old place."""

import json
import shlex
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from jobs.cli import main
from pipeline.registry import versions
from pipeline.storage.run_lock import lock
from pipeline.tracking.mlflow_store import store_uri
from tests.support.registered_models import FID, evaluation
from tests.support.tiny_runs import assert_one_line

pytestmark = pytest.mark.usefixtures("quick")


def contents(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of every file."""
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}


def places(run: Path) -> set[str]:
    """Where the store says artifacts are, apart from MLflow's default experiment."""
    found = set()
    with closing(sqlite3.connect(run / "mlflow.db")) as store:
        for table, column in (
            ("experiments", "artifact_location"),
            ("runs", "artifact_uri"),
            ("logged_models", "artifact_location"),
            ("model_versions", "storage_location"),
        ):
            found |= {row[0] for row in store.execute(f"SELECT {column} FROM {table}") if row[0].startswith("file:")}
    return found


def all_are_in(run: Path) -> bool:
    base = (run / "artifacts").as_uri()
    return len(places(run)) > 2 and all(place == base or place.startswith(f"{base}/") for place in places(run))


def sample(run: Path, model: str = "models:/tiny@first") -> bytes:
    out = run.parent / "out.png"
    assert main(["sample", model, str(out), "--tracking-uri", str(run), "--per-class", "1"]) == 0
    return out.read_bytes()


@pytest.mark.long
def test_a_copy_is_read_as_it_is_and_written_when_the_user_says_that_it_is_one(
    registered_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted, before = (
        versions.resolve(versions.use(store_uri(registered_run, None)), "models:/tiny@first"),
        contents(registered_run),
    )
    run = shutil.copytree(registered_run, tmp_path / "a copy" / "run")
    mine = contents(run)
    pixels = sample(run)
    assert contents(run) == mine and contents(registered_run) == before

    for argv in (
        ["sync", str(run)],
        ["register", str(run), "--name", "other"],
        ["promote", "tiny@first", "--first", "--tracking-uri", str(run)],
        ["rollback", "tiny", "--alias", "first", "--tracking-uri", str(run)],
        ["copy", "tiny@first", "--to", str(run), "--tracking-uri", str(registered_run), "--name", "other"],
    ):
        capsys.readouterr()
        assert main(argv) == 78
        line = capsys.readouterr().err
        assert_one_line(line.replace(f"error: {run}: ", "error: "), 78, 78, str(registered_run), "is a copy")
    assert contents(registered_run) == before

    advice = shlex.split(line.split("`")[1])
    assert advice == ["biggan", "sync", str(run), "--moved"] and main(advice[1:]) == 0
    assert all_are_in(run) and sample(run) == pixels
    assert main(["register", str(run), "--name", "other"]) == 0
    moved = versions.resolve(versions.use(store_uri(run, None)), "models:/other/1")
    assert moved.tags["weights_sha256"] == wanted.tags["weights_sha256"]
    assert len(list((run / "artifacts" / "models").iterdir())) == 2
    assert contents(registered_run) == before


@pytest.mark.long
def test_a_moved_run_takes_its_artifacts_along_and_what_is_printed_works(
    registered_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    first = shutil.copytree(registered_run, tmp_path / "first" / "run")
    assert main(["sync", str(first), "--moved"]) == 0
    run = tmp_path / "50 % & #2" / "run"
    run.parent.mkdir()
    first.rename(run)
    first.parent.rmdir()
    assert sample(run, "models:/tiny/latest") and not all_are_in(run)  # to read, nothing has to change
    caplog.clear()
    with lock(run):
        (run / "lock").write_text('{"pid": 1}')  # as if another process trained it, under another path
        assert main(["sync", str(run)]) == 78
        assert "is being trained, under another path" in capsys.readouterr().err
    capsys.readouterr()
    assert main(["register", str(run), "--name", "my model & co"]) == 0
    assert all_are_in(run) and not first.parent.exists()
    assert f"{run / 'mlflow.db'} was made in {first}" in caplog.text
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("next: "))
    command = shlex.split(line.removeprefix("next: "))
    command[command.index("samples.png")] = str(tmp_path / "samples.png")
    assert main(command[1:]) == 0 and (tmp_path / "samples.png").exists()


def test_models_that_an_older_version_wrote_at_the_old_place_stay_known(registered_run: Path, tmp_path: Path) -> None:
    run = shutil.copytree(registered_run, tmp_path / "run")
    shutil.rmtree(run / "artifacts" / "models")
    assert main(["sync", str(run), "--moved"]) == 0
    away = {place for place in places(run) if not place.startswith((run / "artifacts").as_uri())}
    assert len(away) == 1 and "/models/m-" in away.pop() and sample(run)


@pytest.mark.long
def test_files_that_are_gone_are_no_other_weights(
    registered_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(registered_run, tmp_path / "run")
    assert main(["sync", str(run), "--moved"]) == 0
    client = versions.use(store_uri(run, None))
    client.set_model_version_tag("tiny", "1", "evaluation", json.dumps(evaluation(3.0)))
    (weights,) = run.glob("artifacts/models/*/artifacts/artifacts/generator.safetensors")
    for gone in (weights, weights.parents[1]):
        shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
        for argv in (
            ["sample", "models:/tiny@first", str(tmp_path / "x.png")],
            ["export", "models:/tiny@first", str(tmp_path / "exported")],
            ["copy", "tiny/1", "--to", f"sqlite:///{run / 'mlflow.db'}", "--name", "other"],
            ["dockerfile", "tiny/1", str(tmp_path / "docker")],
            ["promote", "tiny/1", "--first", "--metric", FID],
        ):
            capsys.readouterr()
            assert main([*argv, "--tracking-uri", str(run)]) == 65
            said = capsys.readouterr().err
            assert_one_line(said, 65, 65, f"tiny version 1: no weights found at file://{run}/artifacts/models/m-")
