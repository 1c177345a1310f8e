"""Run folders that somebody else has made: nothing outside of them is shown, and nothing is sent anywhere."""

import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from pipeline.storage import trusted_stores
from pipeline.tracking.journal import append_line, journal_path
from pipeline.tracking.records import ArtifactRecord, ImageRecord
from tests.support.strangers import (
    CANARY,
    Stranger,
    assert_one_line_after,
    files_with_canary,
    journal_record,
    link,
    open_at,
    run,
)
from tests.support.tracked_run import track


def picture(file: object) -> ImageRecord:
    return ImageRecord(time=1, image="grid", step=1, file=str(file))


def artifact(file: object) -> ArtifactRecord:
    return ArtifactRecord(time=1, artifact=str(file))


def linked_sample(place: Path) -> None:
    link("samples/x.png")(place)
    append_line(journal_path(place / "run"), picture("samples/x.png"))


@pytest.mark.parametrize(
    "harm",
    [
        journal_record(picture("../../private")),
        lambda place: append_line(journal_path(place / "run"), picture(place.parent / "private")),
        linked_sample,
        link("config.yaml"),
        link("events.jsonl"),
        link("evaluation/0000000001.json"),
    ],
    ids=["dots", "absolute", "linked sample", "linked config", "linked events", "linked evaluation"],
)
def test_a_report_shows_nothing_from_outside(place: Path, harm: Any, capsys: pytest.CaptureFixture[str]) -> None:
    harm(place)
    assert_one_line_after(lambda: run("report", place / "run"), capsys, 65, "names the file")
    assert not (place / "run" / "report.html").exists()


@pytest.mark.long
@pytest.mark.parametrize(
    "harm",
    [
        journal_record(picture("../../private")),
        journal_record(artifact("../../private")),
        lambda place: append_line(journal_path(place / "run"), artifact(place.parent / "private")),
        linked_sample,
    ],
    ids=["image", "artifact", "absolute", "link"],
)
def test_sync_sends_nothing_from_outside(
    place: Path, stranger: Stranger, harm: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    harm(place)
    assert_one_line_after(lambda: run("sync", place / "run", "--moved"), capsys, 65, "MLflow refuses", "names the file")
    assert not files_with_canary(place)


REGISTRY = ["--tracking-uri", "RUN"]


@pytest.mark.long
@pytest.mark.parametrize(
    "command",
    [
        ["sync", "RUN"],
        ["register", "RUN"],
        ["sample", "models:/x@y", "out.png", *REGISTRY],
        ["promote", "x", *REGISTRY],
        ["copy", "x@y", *REGISTRY, "--to", "sqlite:////tmp/none"],
        ["explore", "models:/x@y", "--port", "0", *REGISTRY],
        ["rollback", "x", *REGISTRY],
    ],
    ids=lambda command: command[0],
)
def test_records_and_credentials_go_only_to_an_mlflow_that_the_user_has_named(
    place: Path, stranger: Stranger, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    open_at(stranger.uri)(place)
    words = [str(place / "run") if word == "RUN" else word for word in command]
    assert_one_line_after(lambda: run(*words), capsys, 78, stranger.uri, "biggan sync")
    assert not stranger.asked


@pytest.mark.long
def test_sync_goes_where_the_user_says(place: Path, stranger: Stranger, monkeypatch: pytest.MonkeyPatch) -> None:
    open_at(stranger.uri)(place)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"{stranger.uri}/")
    assert run("sync", place / "run", "--wait", 0) != 0 and CANARY in stranger.asked[0]
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    stranger.asked.clear()
    assert run("sync", place / "run", "--wait", 0) != 0 and stranger.asked  # remembered
    trusted_stores.addresses().unlink()
    monkeypatch.setattr(trusted_stores, "_here", set())
    stranger.asked.clear()
    assert run("sync", place / "run", "--wait", 0) == 78 and not stranger.asked
    assert run("sync", place / "run", "--wait", 0, "--tracking", stranger.uri) != 0 and stranger.asked


@pytest.mark.long
def test_the_users_own_training_is_synced_without_a_flag(
    tmp_path: Path, stranger: Stranger, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tracker = track(tmp_path / "run", uri=stranger.uri, mode="offline")
    tracker.metrics({"loss": 0.5}, 64)
    tracker.close("FINISHED")
    monkeypatch.setattr(trusted_stores, "_here", set())  # as another process
    assert run("sync", tmp_path / "run", "--wait", 0) != 0 and stranger.asked
    assert "--tracking" not in capsys.readouterr().err


@pytest.mark.long
def test_a_linked_journal_is_not_sent(place: Path, stranger: Stranger, capsys: pytest.CaptureFixture[str]) -> None:
    link("system/node0.jsonl")(place)
    assert_one_line_after(lambda: run("sync", place / "run", "--moved"), capsys, 65, "names the file 'system/node0.jsonl'")


@pytest.mark.long
def test_a_database_elsewhere_is_not_written(place: Path, stranger: Stranger, empty_store: Path) -> None:
    theirs = place.parent / "mlflow.db"
    shutil.copy(empty_store, theirs)
    before = theirs.read_bytes()
    open_at(f"sqlite:///{theirs}")(place)
    assert run("sync", place / "run") == 78
    open_at(f"sqlite:///{place.parent}/new.db")(place)
    assert run("sync", place / "run") == 78 and not (place.parent / "new.db").exists()
    open_at(f"sqlite:///{place}/run/mlflow.db")(place)
    (place / "run" / "mlflow.db").unlink()
    (place / "run" / "mlflow.db").symlink_to(theirs)
    assert run("sync", place / "run") == 78 and theirs.read_bytes() == before


@pytest.mark.long
def test_a_database_in_the_folder_puts_artifacts_nowhere_else(place: Path, stranger: Stranger) -> None:
    with sqlite3.connect(place / "run" / "mlflow.db") as store:
        elsewhere = f"file://{place.parent}/elsewhere"
        store.execute("UPDATE experiments SET artifact_location = ?", (elsewhere,))
        store.execute("UPDATE runs SET artifact_uri = ?", (f"{elsewhere}/artifacts",))
    journal_record(artifact("config.yaml"))(place)
    assert run("sync", place / "run") == 78
    assert not (place.parent / "elsewhere").exists()


@pytest.mark.long
def test_a_model_in_a_database_that_was_sent_is_in_no_other_store(
    tmp_path: Path, registered_run: Path, stranger: Stranger, quick: None, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(registered_run, tmp_path / "run")
    with sqlite3.connect(tmp_path / "run" / "mlflow.db") as store:
        store.execute("UPDATE model_versions SET source = ?, storage_location = ?", (f"{stranger.uri}/model",) * 2)
    words = ["sample", "models:/tiny@first", tmp_path / "x.png", "--tracking-uri", tmp_path / "run"]
    assert_one_line_after(lambda: run(*words), capsys, 78, f"names {stranger.uri}/model", "add --allow")
    assert not stranger.asked
