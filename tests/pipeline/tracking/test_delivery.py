"""Delivery to MLflow: every row once, whatever dies, is repeated or comes back."""

import math
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.servers.mlflow_server import MlflowServer
from pipeline.errors import ConfigError
from pipeline.tracking import mlflow_store
from pipeline.tracking.delivery import Delivery
from pipeline.tracking.journal import journal_path, read
from pipeline.tracking.records import DatasetRow, MetricsRecord, OpenRecord
from pipeline.tracking.tracker import Tracker, TrackingConfig
from tests.support.tracked_run import GRID, image_steps, only_run, steps, track

REPOSITORY = Path(__file__).parents[3]


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    return tmp_path / "run"


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sqlite store with its tables. Making one takes MLflow seconds of waiting for the disk, copying one does not."""
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    mlflow_store.connect(f"sqlite:///{path}")
    return path


@pytest.fixture
def store(run_dir: Path, empty_store: Path) -> str:
    """The run's own store, empty."""
    run_dir.mkdir()
    shutil.copy(empty_store, run_dir / "mlflow.db")
    return mlflow_store.store_uri(run_dir, None)


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


def test_a_store_that_has_lost_the_run_gets_all_of_it_anew(run_dir: Path, store: str, empty_store: Path) -> None:
    tracker = track(run_dir, mode="offline")
    tracker.metrics({"loss": 1.0}, 1)
    delivery = Delivery(run_dir)
    first = delivery.deliver()
    shutil.copy(empty_store, run_dir / "mlflow.db")
    tracker.metrics({"loss": 1.0}, 2)
    tracker.close("FINISHED")
    with pytest.raises(Exception, match=first):
        delivery.deliver()
    assert delivery.deliver() != first
    assert steps(store, "loss") == [1, 2] and only_run(store).info.status == "FINISHED"
    assert only_run(store).info.start_time == next(record.time for record, _ in read(run_dir))


def test_a_path_from_the_working_directory_is_one_store_wherever_commands_are_given(
    tmp_path: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(empty_store, "ml.db")
    track(tmp_path / "run", uri="sqlite:///ml.db").close("FINISHED")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert Delivery(tmp_path / "run").uri == f"sqlite:///{tmp_path}/ml.db"
    journal = journal_path(tmp_path / "run")  # as an older version wrote it
    journal.write_text(journal.read_text().replace(f"sqlite:///{tmp_path}/ml.db", "sqlite:///ml.db"))
    with pytest.raises(ConfigError, match=r"is tracked at sqlite:///ml\.db, a path from the folder where"):
        Delivery(tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    assert Delivery(tmp_path / "run").deliver() and not list((tmp_path / "elsewhere").iterdir())


def test_another_store_than_last_time_gets_the_whole_run(run_dir: Path, store: str, empty_store: Path) -> None:
    tracker = track(run_dir)
    tracker.metrics({"loss": 1.0}, 3)
    tracker.image(GRID, "samples", 3)
    tracker.close("KILLED")
    (run_dir / "elsewhere").mkdir()
    other = f"sqlite:///{shutil.copy(empty_store, run_dir / 'elsewhere')}"
    moved = track(run_dir, uri=other)
    moved.close("FINISHED")
    assert (run_dir / "elsewhere" / "artifacts").is_dir()
    assert moved.run_id != tracker.run_id and steps(other, "loss") == [3] and image_steps(other) == {"3": 1}


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


def test_a_killed_process_leaves_all_its_rows_to_the_next(run_dir: Path, store: str) -> None:
    script = f"""
        import os, signal, sys, time
        from pathlib import Path
        from pipeline.tracking.tracker import Tracker, TrackingConfig
        tracker = Tracker(TrackingConfig(flush_seconds=0.05), Path({str(run_dir)!r}), "one", {{}}, {{}})
        assert "mlflow.tracking" not in sys.modules, "the start of the training waited for mlflow"
        step = 0
        while step < 1000 or tracker.run_id is None:
            tracker.metrics({{"loss": step / 7}}, step)
            step += 1
            time.sleep(0.001)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    killed = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], cwd=REPOSITORY, check=False)
    assert killed.returncode == -signal.SIGKILL
    recorded = [record.step for record, _ in read(run_dir) if isinstance(record, MetricsRecord)]
    assert len(recorded) >= 1000 and only_run(store).info.status == "RUNNING"
    tracker = track(run_dir)
    tracker.close("FINISHED")
    assert steps(store, "loss") == recorded == list(range(len(recorded)))


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


@pytest.fixture
def server(tmp_path: Path, empty_store: Path) -> Iterator[MlflowServer]:
    server = MlflowServer(tmp_path)
    shutil.copy(empty_store, server.folder / "server.db")
    yield server
    server.kill()


@pytest.mark.slow
def test_a_server_that_comes_goes_and_returns_has_every_row_once(run_dir: Path, server: MlflowServer) -> None:
    tracker = track(run_dir, uri=server.uri)
    slowest, step = 0.0, 0

    def train(seconds: float) -> None:
        nonlocal slowest, step
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            start = time.perf_counter()
            tracker.metrics({"loss": step / 3, "other": -step}, step)
            slowest = max(slowest, time.perf_counter() - start)
            step += 1
            time.sleep(0.002)
        tracker.image(GRID, "samples", step)

    train(1)  # nobody there yet
    server.start()
    train(2)
    run_id = tracker.run_id
    assert run_id is not None
    server.kill()  # in the middle of deliveries
    train(1)
    server.start()
    train(2)
    server.kill()
    train(0.2)
    tracker.close("FINISHED")  # and away again at the end

    server.start()
    resumed = track(run_dir, uri=server.uri)
    resumed.close("FINISHED")
    assert resumed.run_id == run_id and only_run(server.uri).info.status == "FINISHED"
    assert steps(server.uri, "loss") == steps(server.uri, "other") == list(range(step))
    assert list(image_steps(server.uri).values()) == [1] * 5
    assert slowest < 0.25


@pytest.mark.slow
def test_processes_that_deliver_one_fresh_run_at_once_make_one_run(run_dir: Path) -> None:
    store = mlflow_store.store_uri(run_dir, None)  # not there yet
    tracker = track(run_dir, mode="off")
    for step in range(100):
        tracker.metrics({"loss": 1.0}, step)
    tracker.image(GRID, "samples", 1)
    tracker.close("FINISHED")
    script = (
        f"from pathlib import Path; from pipeline.tracking.delivery import Delivery; Delivery(Path({str(run_dir)!r})).deliver()"
    )
    processes = [subprocess.Popen([sys.executable, "-c", script], cwd=REPOSITORY) for _ in range(4)]
    assert [process.wait() for process in processes] == [0] * 4
    assert steps(store, "loss") == list(range(100)) and image_steps(store) == {"1": 1}


def test_a_kill_while_the_tables_are_made_leaves_no_store(tmp_path: Path) -> None:
    store = tmp_path / "mlflow.db"
    code = f"from pipeline.tracking.mlflow_store import connect; connect('sqlite:///{store}')"
    making = subprocess.Popen([sys.executable, "-c", code], cwd=REPOSITORY, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not list(tmp_path.iterdir()):
        assert making.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    making.kill()
    making.wait()
    assert not store.exists()
    assert mlflow_store.connect(f"sqlite:///{store}").search_experiments()
