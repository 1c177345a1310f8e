"""Delivery to MLflow: every row once, whatever dies, is repeated or comes back."""

import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.errors import ConfigError
from pipeline.tracking import mlflow_store
from pipeline.tracking.delivery import Delivery
from pipeline.tracking.journal import journal_path, read
from pipeline.tracking.records import DatasetRow, MetricsRecord, OpenRecord
from pipeline.tracking.tracker import Tracker, TrackingConfig
from tests.support.tracked_run import GRID, image_steps, only_run, steps, track


@pytest.mark.long
def test_everything_a_training_tells_is_in_its_own_store(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_dir.mkdir()
    monkeypatch.chdir(run_dir.parent)
    store = mlflow_store.store_uri(run_dir, None)  # not there yet
    params = {"optim.g_lr": 1e-4, "optim.betas": (0.0, 0.999), "note": "x" * 7000}
    tracker = Tracker(TrackingConfig(), run_dir, "one", params, {"biggan.git_commit": "abc"})
    tracker.artifact_text("seed: 1\n", "config.yaml")
    for step in range(0, 640, 64):
        tracker.metrics({"loss/d": step / 2, "loss/g": math.nan}, step)
    tracker.image(GRID, "samples/ema", 64)
    tracker.image(GRID[..., :1], "samples/grey", 128)
    tracker.close("FINISHED")

    run, client = only_run(store), mlflow_store.connect(store)
    assert run.info.run_id == tracker.run_id and run.info.status == "FINISHED" and run.info.run_name == "run"
    assert run.data.params == {"optim.g_lr": "0.0001", "optim.betas": "(0.0, 0.999)", "note": "x" * 6000}
    assert run.data.tags["biggan.git_commit"] == "abc" and run.data.tags["biggan.run_uid"] == "one"
    rows = client.get_metric_history(run.info.run_id, "loss/d")
    written = {r.step: r.time for r, _ in read(run_dir) if isinstance(r, MetricsRecord)}
    assert [(m.step, m.value, m.timestamp) for m in rows] == [(s, s / 2, written[s]) for s in range(0, 640, 64)]
    assert len(client.get_metric_history(run.info.run_id, "loss/g")) == 10
    files = {Path(f.path).name: f.path for f in client.list_artifacts(run.info.run_id, "images")}
    assert len(files) == 4  # a PNG and a thumbnail each
    for key, image in (("samples~ema+step+64", GRID), ("samples~grey+step+128", GRID[..., 0])):
        (path,) = (p for name, p in files.items() if name.startswith(key) and name.endswith(".png"))
        stored = Image.open(client.download_artifacts(run.info.run_id, path, str(run_dir)))
        assert np.array_equal(np.asarray(stored), image)
    config = client.download_artifacts(run.info.run_id, "config.yaml", str(run_dir))
    assert Path(config).read_text() == "seed: 1\n"
    assert (run_dir / "artifacts").is_dir() and not (run_dir.parent / "mlruns").exists()


@pytest.mark.long
def test_a_resumed_training_continues_its_run_with_one_row_per_key_and_step(run_dir: Path, store: str) -> None:
    first = track(run_dir, params={"lr": 1, "ch": 16})
    for step in range(10):
        first.metrics({"loss": 1.0}, step)
    first.image(GRID, "samples", 8)
    first.close("KILLED")
    assert only_run(store).info.status == "KILLED"

    second = track(run_dir, params={"lr": 2, "ch": 16, "new": True})  # from a checkpoint at step 5
    for step in range(5, 15):
        second.metrics({"loss": 2.0}, step)
    second.metrics({"fid": 30.0}, 9)  # was not recorded before the kill: another key's rows do not shadow it
    for step in (8, 12):
        second.image(GRID, "samples", step)
    second.close("FINISHED")

    run, client = only_run(store), mlflow_store.connect(store)
    assert first.run_id == second.run_id == run.info.run_id and run.info.status == "FINISHED"
    history = client.get_metric_history(run.info.run_id, "loss")
    assert sorted((m.step, m.value) for m in history) == [(s, 1.0 if s < 10 else 2.0) for s in range(15)]
    assert steps(store, "fid") == [9]
    assert image_steps(store) == {"8": 1, "12": 1}
    assert run.data.params == {"lr": "1", "ch": "16", "new": "True"}
    assert {k: v for k, v in run.data.tags.items() if k.startswith("biggan.changed")} == {"biggan.changed.lr": "2"}

    track(run_dir, params={"lr": 1, "ch": 16, "new": True}).close("FINISHED")
    assert only_run(store).data.tags["biggan.changed.lr"] == "1"  # back to what it was, and not left saying 2


def test_another_training_in_the_same_store_is_another_run(tmp_path: Path, empty_store: Path) -> None:
    uri = f"sqlite:///{shutil.copy(empty_store, tmp_path / 'shared.db')}"
    ids = set()
    for uid in ("one", "two"):
        tracker = track(tmp_path / uid, uid, uri=uri, experiment="shared")
        tracker.close("FINISHED")
        ids.add(tracker.run_id)
    assert len(ids) == 2 and None not in ids


@pytest.mark.long
def test_a_replay_with_lost_offset_and_torn_tail_adds_nothing(run_dir: Path, store: str) -> None:
    tracker = track(run_dir)
    for step in range(1200):  # two batches
        tracker.metrics({"loss": step / 3, "real": math.inf}, step)
    tracker.image(GRID, "samples", 7)
    tracker.close("FINISHED")
    (run_dir / "journal.offset").unlink()
    with journal_path(run_dir).open("a") as file:
        file.write('{"time": 1, "metrics": {"loss": 1}, "st')
    Delivery(run_dir).deliver()
    assert steps(store, "loss") == steps(store, "real") == list(range(1200))
    assert image_steps(store) == {"7": 1}

    tracker = track(run_dir)
    tracker.metrics({"loss": 0.5}, 1200)
    tracker.close("FINISHED")
    assert steps(store, "loss") == list(range(1201))
    assert sum(isinstance(record, OpenRecord) for record, _ in read(run_dir)) == 2  # the torn line took no whole one with it


def test_an_image_that_was_half_delivered_is_whole_once(run_dir: Path, store: str) -> None:
    tracker = track(run_dir, mode="offline")
    tracker.image(GRID, "samples/ema", 7)
    tracker.close("FINISHED")
    Delivery(run_dir).deliver()
    (thumbnail,) = run_dir.glob("artifacts/*/artifacts/images/*.webp")
    (whole,) = run_dir.glob("artifacts/*/artifacts/images/*.png")
    thumbnail.unlink()
    whole.write_bytes(b"half")
    (run_dir / "journal.offset").unlink()
    Delivery(run_dir).deliver()
    assert set(thumbnail.parent.iterdir()) == {whole, thumbnail}
    assert np.array_equal(np.asarray(Image.open(whole)), GRID)
    assert max(Image.open(thumbnail).size) == 96


def test_damaged_lines_and_images_do_not_hold_up_the_rest(run_dir: Path, store: str, caplog: pytest.LogCaptureFixture) -> None:
    tracker = track(run_dir, mode="off")
    tracker.metrics({"loss": 1.0}, 1)
    tracker.image(GRID, "samples", 1)
    tracker.image(GRID, "samples", 2)
    tracker.artifact("events.jsonl")
    tracker.metrics({"loss": 1.0}, 2)
    tracker.close("FINISHED")
    lines = journal_path(run_dir).read_text().splitlines()
    journal_path(run_dir).write_text("\n".join([*lines[:2], "\0\0\0", *lines[2:]]) + "\n")
    (run_dir / "samples" / "samples-0000000001.png").unlink()
    (run_dir / "samples" / "samples-0000000002.png").write_bytes(b"")
    Delivery(run_dir).deliver()
    assert steps(store, "loss") == [1, 2] and only_run(store).info.status == "FINISHED"
    assert "byte" in caplog.text and caplog.text.count("MLflow does not get the image") == 2
    assert "events.jsonl has been removed" in caplog.text


def test_mode_off_keeps_a_journal_that_can_be_delivered_later(run_dir: Path, store: str) -> None:
    tracker = track(run_dir, mode="off", params={"lr": 1})
    tracker.metrics({"loss": 1.0}, 1)
    tracker.close("FINISHED")
    assert mlflow_store.connect(store).get_experiment_by_name("biggan") is None and tracker.run_id is None
    Delivery(run_dir).deliver()
    run = only_run(store)
    times = [record.time for record, _ in read(run_dir)]
    assert (run.info.start_time, run.info.end_time) == (times[0], times[-1])  # not when it was delivered
    assert run.data.params == {"lr": "1"} and run.data.metrics == {"loss": 1.0} and run.info.status == "FINISHED"


def test_a_file_of_the_run_is_an_artifact_as_it_is_at_its_delivery(run_dir: Path, store: str) -> None:
    tracker = track(run_dir, mode="offline")
    (run_dir / "events.jsonl").write_text("one\n")
    tracker.artifact("events.jsonl")
    (run_dir / "events.jsonl").write_text("one\ntwo\n")
    tracker.close("FINISHED")
    Delivery(run_dir).deliver()
    copy = mlflow_store.connect(store).download_artifacts(only_run(store).info.run_id, "events.jsonl", str(run_dir.parent))
    assert Path(copy).read_text() == "one\ntwo\n"


def test_the_data_are_inputs_of_the_run_once(run_dir: Path, store: str) -> None:
    import mlflow.data

    uris = {"local": "/data/train", "s3": "s3://bucket/train", "http": "http://host/train"}
    rows = [DatasetRow(name, uri, name * 40, "{}") for name, uri in uris.items()]
    run_dir.mkdir(exist_ok=True)
    for _ in range(2):
        Tracker(TrackingConfig(mode="offline"), run_dir, "one", {"uri": "http://me:secret@host"}, {}, rows).close("FINISHED")
        Delivery(run_dir).deliver()
    run = only_run(store)
    assert run.data.params == {"uri": "http://host"}
    found = {one.dataset.name: one.dataset for one in run.inputs.dataset_inputs}
    assert len(run.inputs.dataset_inputs) == 3 and {name: d.digest for name, d in found.items()} == {
        n: (n * 40)[:36] for n in uris
    }
    for name, uri in uris.items():
        source = mlflow.data.get_source(found[name]).to_dict()
        assert uri in source.values()


def test_a_folder_without_a_run_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not the folder of a training"):
        Delivery(tmp_path)
