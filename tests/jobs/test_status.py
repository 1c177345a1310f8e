"""`biggan status` where there is no Slurm: a run's own words."""

import json
from pathlib import Path

import pytest

from jobs.cli import main
from pipeline import submission
from pipeline.journal import append_line, journal_path
from pipeline.run import Status, lock, write_status
from tests.pipeline.saved_run import save_run


def status(folder: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    assert main(["status", str(folder)]) == 0
    lines = capsys.readouterr().out.splitlines()[1:]
    return {line[2:12].strip(): line[13:] for line in lines}


def test_a_run_tells_how_far_it_is(shards_grey: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    save_run(run, shards_grey, uri="http://user:secret@mlflow.example:5000/", mode="offline")
    append_line(journal_path(run), metrics={"images_per_second": 32.0}, step=6144)
    (run / "journal.offset").write_text(json.dumps({"0123abcd": {"journal.jsonl": 9}}))
    found = status(run, capsys)
    assert found["state"] == "has not begun" and "job" not in found
    assert found["progress"].startswith("6,144 of 8,192 images (75%), 32.0 images/s, 64 s left, reported ")
    assert found["checkpoint"].startswith("4,096 images, ") and found["checkpoint"].endswith("checkpoints/0000004096")
    assert found["mlflow"] == "http://mlflow.example:5000/#/runs/0123abcd"

    write_status(run, Status("running", 6144))
    assert status(run, capsys)["state"] == "ended without a word (killed, or its node lost)"
    with lock(run):
        (run / "STOP").touch()
        assert status(run, capsys)["state"] == "running, asked to stop"
    (run / "STOP").unlink()
    write_status(run, Status("failed", 6144, 78, "no such data"))
    assert status(run, capsys)["state"] == "failed, exit code 78: no such data"


def test_a_job_that_cannot_be_asked_about(
    shards_grey: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    save_run(run, shards_grey, mode="off")
    (run / "submission").mkdir()
    submission.record(run / "submission", submission.Submission("slurm", "12", 2))
    monkeypatch.setenv("PATH", str(tmp_path))
    found = status(run, capsys)
    assert found["job"].startswith("Slurm 12: Slurm's commands are not here") and found["mlflow"] == "off"


def test_a_folder_without_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", str(tmp_path)]) == 78
    assert "is not the folder of a run" in capsys.readouterr().err
