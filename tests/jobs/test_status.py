"""`biggan status` where there is no Slurm: a run's own words."""

import json
import shlex
import shutil
from pathlib import Path

import pytest

from jobs.cli import main
from pipeline.cluster import submission
from pipeline.runs.resume import note_saved
from pipeline.runs.run_folder import RunState, write_status
from pipeline.storage.run_lock import lock
from pipeline.tracking.journal import append_line, journal_path
from pipeline.tracking.records import MetricsRecord, now
from tests.support.saved_run import save_run


def status(folder: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    assert main(["status", str(folder)]) == 0
    lines = capsys.readouterr().out.splitlines()[1:]
    return {line[2:12].strip(): line[13:] for line in lines}


def test_a_run_tells_how_far_it_is(shards_grey: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    save_run(run, shards_grey, uri="http://user:secret@mlflow.example:5000/", mode="offline")
    append_line(journal_path(run), MetricsRecord(time=now(), metrics={"images_per_second": 32.0}, step=6144))
    (run / "journal.offset").write_text(json.dumps({"0123abcd": {"journal.jsonl": 9}}))
    found = status(run, capsys)
    assert found["state"] == "has not begun" and "job" not in found
    assert found["progress"].startswith("6,144 of 8,192 images (75%), 32.0 images/s, 64 s left, reported ")
    assert found["checkpoint"].startswith("4,096 images, ") and found["checkpoint"].endswith("checkpoints/0000004096")
    assert found["mlflow"] == "http://mlflow.example:5000/#/runs/0123abcd"

    write_status(run, RunState("running", 6144))
    assert status(run, capsys)["state"] == "ended without a word (killed, or its node lost)"
    with lock(run):
        (run / "STOP").touch()
        assert status(run, capsys)["state"] == "running, asked to stop"
    (run / "STOP").unlink()
    write_status(run, RunState("failed", 6144, 78, "no such data"))
    assert status(run, capsys)["state"] == "failed, exit code 78: no such data"


def test_what_mlflow_lacks_is_said_with_the_reason_until_it_has_it(
    shards_grey: Path, tmp_path: Path, empty_store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, store = tmp_path / "a run", tmp_path / "later" / "ml.db"
    save_run(run, shards_grey, uri=f"sqlite:///{store}")
    assert "biggan: warning: " in capsys.readouterr().out
    place, why = status_lines(run, capsys)[-2:]
    assert place.endswith(f"mlflow ui --backend-store-uri sqlite:///{store}")
    assert "lacks records (" in why and "create its folder" in why
    command = shlex.split(why.split("`")[1])
    assert main([*command[1:], "--wait", "0"]) == 78 and status_lines(run, capsys)[-1] == why
    store.parent.mkdir()
    shutil.copy(empty_store, store)
    with journal_path(run).open("a") as journal:  # as a version with other names may have written it
        journal.write('{"time": 1, "metrics": {"D(real)": 1.0}, "step": 1}\n')
    assert main(command[1:]) == 65
    assert "refuses 1 record, which journal.jsonl keeps: metric 'D(real)'" in status_lines(run, capsys)[-1]
    assert main(command[1:]) == 0
    assert "refuses 1 record" in status_lines(run, capsys)[-1]  # MLflow still lacks it


def status_lines(folder: Path, capsys: pytest.CaptureFixture[str]) -> list[str]:
    capsys.readouterr()
    assert main(["status", str(folder)]) == 0
    return capsys.readouterr().out.splitlines()


def test_a_job_that_cannot_be_asked_about(
    shards_grey: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    save_run(run, shards_grey, mode="off")
    (run / "submission").mkdir()
    submission.record(run / "submission", submission.Submission(scheduler="slurm", job="12", nodes=2))
    monkeypatch.setenv("PATH", str(tmp_path))
    found = status(run, capsys)
    assert found["job"].startswith("Slurm 12: Slurm's commands are not here") and found["mlflow"] == "off"


def test_checkpoints_that_were_deleted_are_not_none_yet(
    shards_grey: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    save_run(run, shards_grey, mode="off")
    shutil.rmtree(run / "checkpoints")
    assert status(run, capsys)["checkpoint"] == "none yet"
    note_saved(run, 4096)
    assert status(run, capsys)["checkpoint"] == f"none at {run}/checkpoints, but the run was saved at image 4,096"


def test_a_folder_without_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", str(tmp_path)]) == 78
    assert "is not the folder of a run" in capsys.readouterr().err
