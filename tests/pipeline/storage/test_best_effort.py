"""Files of a run's folder on a disk that fails: each is given up with one line, and nothing is raised."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline import storage, variables
from pipeline.cluster.launch_folder import launch_folder
from pipeline.data.quarantine import BadSampleError, Quarantine
from pipeline.errors import DataError
from pipeline.fault_tolerance import run_mirror
from pipeline.runs import resume
from pipeline.runs.run_folder import RunState, read_status, write_status
from pipeline.storage import best_effort
from pipeline.storage.best_effort import tell
from pipeline.tracking.tracker import Tracker, TrackingConfig

NUMBERS = ("ENOSPC", "EDQUOT", "EROFS", "EACCES", "EPERM", "EIO", "ESTALE", "ENOTDIR", "ENOENT")


@pytest.fixture(autouse=True)
def _nothing_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(best_effort, "_said", set())


@pytest.mark.parametrize("name", NUMBERS)
def test_every_way_a_disk_fails_is_said_once(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(*_: Any, **__: Any) -> Any:
        raise OSError(getattr(errno, name), os.strerror(getattr(errno, name)), str(tmp_path / "x\n\x1b[31m"))

    monkeypatch.setattr(storage.files, "_write_file", fails)
    monkeypatch.setattr(os, "open", fails)
    quarantine = Quarantine(1, tmp_path / "quarantine.jsonl", samples=8)
    for sample in (1, 1):
        assert not write_status(tmp_path, RunState("running"))
        resume.note_saved(tmp_path, 64)
        run_mirror.keep(tmp_path, "health.json", b"{}")
        quarantine.add(BadSampleError("shard", sample, "key", "reason"))
    said = capsys.readouterr().out.splitlines()
    assert [line.partition(" is not kept (")[0].rpartition("/")[2] for line in said] == [
        *("status.json", "saved.json", "health.json", "quarantine.jsonl"),
    ]
    assert all(line.isprintable() and line.endswith("): training goes on without it") for line in said)
    with pytest.raises(DataError, match="2 samples cannot be used"):  # what it decides holds without the file
        quarantine.add(BadSampleError("shard", 2, "key", "reason"))


def test_the_launcher_hears_of_an_end_that_the_runs_disk_does_not_take(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "run").touch()
    with launch_folder() as place:
        monkeypatch.setenv(variables.STATUS, str(place / "status.json"))
        assert write_status(tmp_path / "run", RunState("finished", 64, 0))
        assert read_status(place / "status.json") == RunState("finished", 64, 0)
    monkeypatch.setenv(variables.STATUS, str(tmp_path / "run" / "none"))
    assert not write_status(tmp_path / "run", RunState("finished", 64, 0))


@pytest.mark.parametrize("place", [lambda path: path.touch(), lambda path: None])
def test_a_tracker_without_its_disk_is_silent(
    place: Callable[[Path], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As after a rollback, when the run's folder has gone."""
    place(tmp_path / "run")
    tracker = Tracker(TrackingConfig(), tmp_path / "run", "uid", {}, {})
    tracker.metrics({"loss": 1.0}, 1)
    tracker.artifact("events.jsonl")
    tracker.close("FINISHED")
    assert tracker.run_id is None
    assert capsys.readouterr().out.count("journal.jsonl is not kept") == 1


def test_output_that_is_closed_is_no_reason_either(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout", open(os.devnull))  # noqa: SIM115 - cannot be written
    tell(Path("status.json"), OSError())
