"""Delivery while processes are killed, servers go, and stores are lost, changed or not there yet."""

import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.servers.mlflow_server import MlflowServer
from pipeline.errors import ConfigError
from pipeline.tracking import mlflow_store
from pipeline.tracking.delivery import Delivery
from pipeline.tracking.journal import journal_path, read
from pipeline.tracking.records import MetricsRecord
from tests.support.tracked_run import GRID, image_steps, only_run, steps, track


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


@pytest.mark.long
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


REPOSITORY = Path(__file__).parents[3]


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


@pytest.mark.long
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
