"""`biggan sync` against a real MLflow server: rows once, every refusal with what to do, and the end of killed runs."""

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.servers.mlflow_proxy import Proxy
from benchmarks.servers.mlflow_server import MlflowServer
from jobs.cli import main
from pipeline.storage.run_lock import lock
from pipeline.tracking.journal import Journal, journal_path, read
from pipeline.tracking.mlflow_store import connect
from pipeline.tracking.records import CloseRecord, MetricsRecord, Opening, OpenRecord, now
from pipeline.tracking.tracker import Tracker, TrackingConfig
from tests.support.tiny_runs import assert_one_line

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> Iterator[MlflowServer]:
    server = MlflowServer(tmp_path_factory.mktemp("server"))
    shutil.copy(empty_store, server.folder / "server.db")
    server.start()
    yield server
    server.kill()


def offline(run: Path, uri: str, **config: Any) -> Tracker:
    """A run of 5 steps, not closed, whose uid is its folder's name."""
    run.mkdir()
    tracker = Tracker(TrackingConfig(**{"mode": "offline", "uri": uri, **config}), run, run.name, {"lr": 1}, {"biggan.x": "y"})
    for step in range(5):
        tracker.metrics({"loss": step / 3}, step)
    return tracker


def stored(uri: str, uid: str) -> Any:
    client = connect(uri)
    ids = [e.experiment_id for e in client.search_experiments()]
    (run,) = client.search_runs(ids, f"tags.`biggan.run_uid` = '{uid}'")
    return run


def steps(uri: str, uid: str, key: str = "loss") -> list[int]:
    return sorted(row.step for row in connect(uri).get_metric_history(stored(uri, uid).info.run_id, key))


@pytest.mark.long
def test_an_offline_run_is_delivered_while_it_trains_later_and_again(
    tmp_path: Path, server: MlflowServer, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "offline"
    tracker = offline(run, server.uri)
    with lock(run):
        assert main(["sync", str(run)]) == 0
        assert "5 rows and 0 files sent" in (said := capsys.readouterr().out) and "training goes on" in said
        assert stored(server.uri, "offline").info.status == "RUNNING"
        tracker.metrics({"loss": 9.0}, 9)
    tracker.close("FINISHED")
    copy = shutil.copytree(run, tmp_path / "copy")  # as from a cluster
    assert main(["sync", str(copy)]) == 0
    assert "1 rows and 0 files sent" in (said := capsys.readouterr().out) and "all of it" in said
    assert main(["sync", str(run)]) == 0  # the original knows nothing of what its copy has delivered
    assert main(["sync", str(run)]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith(f"{run}: 0 rows and 0 files sent")
    found = stored(server.uri, "offline")
    assert found.info.status == "FINISHED" and found.data.params == {"lr": "1"}
    assert steps(server.uri, "offline") == [0, 1, 2, 3, 4, 9]


def test_another_server_gets_the_whole_run_and_the_first_forgets_nothing(
    tmp_path: Path, server: MlflowServer, empty_store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "two"
    tracker = offline(run, server.uri)
    assert main(["sync", str(run)]) == 0
    other = f"sqlite:///{shutil.copy(empty_store, tmp_path / 'other.db')}"
    assert main(["sync", str(run), "--tracking", other]) == 0
    tracker.close("FINISHED")
    assert main(["sync", str(run)]) == 0
    assert "0 rows" in capsys.readouterr().out.splitlines()[-1]  # where it was has not been forgotten for the other
    assert steps(server.uri, "two") == steps(other, "two") == [0, 1, 2, 3, 4]
    assert main(["sync", str(run), "--tracking", "somewhere"]) == 78
    assert_one_line(capsys.readouterr().err, 78, 78, "--tracking somewhere", "http://")


def test_a_run_that_is_off_is_left_out_unless_a_server_is_named(
    tmp_path: Path, server: MlflowServer, capsys: pytest.CaptureFixture[str]
) -> None:
    offline(tmp_path / "off", server.uri, mode="off").close("FINISHED")
    assert main(["sync", str(tmp_path / "off")]) == 0
    assert "tracking.mode=off" in capsys.readouterr().out
    assert not connect(server.uri).search_runs(["1"], "tags.`biggan.run_uid` = 'off'")
    assert main(["sync", str(tmp_path / "off"), "--tracking", server.uri]) == 0
    assert steps(server.uri, "off") == [0, 1, 2, 3, 4]


@pytest.mark.long
def test_a_server_that_is_away_is_waited_for_and_then_named(
    tmp_path: Path, server: MlflowServer, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("away", "away-too"):
        offline(tmp_path / name, "http://127.0.0.1:9").close("FINISHED")
    assert main(["sync", str(tmp_path / "away"), str(tmp_path / "away-too"), "--wait", "2"]) == 74
    said = capsys.readouterr().err
    assert said.count("trying for another") == 1 and said.count("biggan: error: ") == 2  # the second does not wait again
    assert "http://127.0.0.1:9" in said and "type the same again" in said
    assert main(["sync", str(tmp_path / "nothing")]) == 78
    assert_one_line(capsys.readouterr().err, 78, 78, "not the folder of a training")


def test_a_deleted_run_or_experiment_says_how_to_restore_it(
    tmp_path: Path, server: MlflowServer, capsys: pytest.CaptureFixture[str]
) -> None:
    run, client = tmp_path / "deleted", connect(server.uri)
    tracker = offline(run, server.uri, experiment="doomed")
    assert main(["sync", str(run)]) == 0
    found = stored(server.uri, "deleted")
    client.delete_run(found.info.run_id)
    tracker.close("FINISHED")
    capsys.readouterr()
    assert main(["sync", str(run)]) == 78
    assert_one_line(capsys.readouterr().err, 78, 78, f"mlflow runs restore --run-id {found.info.run_id}", server.uri)
    client.restore_run(found.info.run_id)
    client.delete_experiment(found.info.experiment_id)
    assert main(["sync", str(run)]) == 78
    command = f"mlflow experiments restore --experiment-id {found.info.experiment_id}"
    assert_one_line(capsys.readouterr().err, 78, 78, command, "doomed")
    client.restore_experiment(found.info.experiment_id)
    assert main(["sync", str(run)]) == 0
    assert stored(server.uri, "deleted").info.status == "FINISHED" and steps(server.uri, "deleted") == [0, 1, 2, 3, 4]


def test_a_run_deleted_under_a_training_is_told_and_not_made_again(
    tmp_path: Path, server: MlflowServer, caplog: pytest.LogCaptureFixture
) -> None:
    run, client = tmp_path / "under", connect(server.uri)
    offline(run, server.uri).close("KILLED")
    assert main(["sync", str(run)]) == 0
    run_id = stored(server.uri, "under").info.run_id
    client.delete_run(run_id)
    tracker = Tracker(TrackingConfig(uri=server.uri, flush_seconds=0.1), run, "under", {"lr": 1}, {})
    tracker.metrics({"loss": 1.0}, 7)
    tracker.close("FINISHED")
    assert f"{run_id} has been deleted" in caplog.text and caplog.text.count("training goes on") == 1
    client.restore_run(run_id)
    assert main(["sync", str(run)]) == 0
    assert steps(server.uri, "under") == [0, 1, 2, 3, 4, 7]


@pytest.mark.long
def test_a_row_that_mlflow_refuses_does_not_hold_up_the_others(
    tmp_path: Path, server: MlflowServer, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "refused"
    run.mkdir()
    journal = Journal(run)  # as an older version, or another program, may have written it
    params = {"a[0]": "1", "b": "2"}
    opening = Opening(uid="refused", uri=server.uri, experiment="biggan", params=params, tags={})
    journal.append(OpenRecord(time=now(), open=opening))
    for step in range(1500):
        metrics = {"loss": 1.0, **({"D(real)": 1.0} if step == 700 else {})}
        journal.append(MetricsRecord(time=now(), metrics=metrics, step=step))
    journal.append(CloseRecord(time=now(), close="FINISHED"))
    journal.close()
    assert main(["sync", str(run)]) == 65
    said = capsys.readouterr()
    assert "1,500 rows" in said.out
    assert_one_line(said.err, 65, 65, "a[0]", "1 more", "all else has been delivered")
    assert steps(server.uri, "refused") == list(range(1500))
    found = stored(server.uri, "refused")
    assert found.info.status == "FINISHED" and found.data.params == {"b": "2"}


@pytest.mark.long
def test_a_server_that_lets_nobody_in_says_what_to_set(
    tmp_path: Path, server: MlflowServer, capsys: pytest.CaptureFixture[str]
) -> None:
    proxy = Proxy(server.port, "403")
    offline(tmp_path / "forbidden", proxy.uri).close("FINISHED")
    assert main(["sync", str(tmp_path / "forbidden")]) == 78
    assert_one_line(capsys.readouterr().err, 78, 78, "MLFLOW_TRACKING_USERNAME", proxy.uri)
    proxy.mode = "pass"
    assert main(["sync", str(tmp_path / "forbidden")]) == 0
    proxy.close()


def killed(run: Path, uri: str) -> None:
    """A run whose process was killed with SIGKILL."""
    script = f"""
        import os, signal
        from pathlib import Path
        from pipeline.tracking.tracker import Tracker, TrackingConfig
        config = TrackingConfig(mode="offline", uri={uri!r})
        tracker = Tracker(config, Path({str(run)!r}), {run.name!r}, {{}}, {{}})
        tracker.metrics({{"loss": 1.0}}, 1)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    run.mkdir()
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], cwd=REPOSITORY, check=False)
    assert done.returncode == -signal.SIGKILL


@pytest.mark.long
def test_a_run_whose_process_is_gone_becomes_killed_at_its_last_record(
    tmp_path: Path, server: MlflowServer, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "killed"
    killed(run, server.uri)
    last = [record.time for record, _ in read(run)][-1]
    for _ in range(2):
        assert main(["sync", str(run)]) == 0
    assert capsys.readouterr().out.count("is gone") == 1
    info = stored(server.uri, "killed").info
    assert info.status == "KILLED" and info.end_time == last
    assert [record.close for record, _ in read(run) if isinstance(record, CloseRecord)] == ["KILLED"]


@pytest.mark.long
def test_a_run_of_another_machine_is_not_touched_without_a_word_from_the_user(
    tmp_path: Path, server: MlflowServer, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "foreign"
    killed(run, server.uri)
    records = [record.as_json() for record, _ in read(run)]
    records[0]["open"]["process"] |= {"machine": "another", "host": "node7"}
    journal_path(run).write_text("".join(json.dumps(record) + "\n" for record in records))
    assert main(["sync", str(run)]) == 0
    assert "node7" in (said := capsys.readouterr().out) and "--killed" in said
    assert stored(server.uri, "foreign").info.status == "RUNNING"
    with lock(run):  # somebody here trains it: not even then
        assert main(["sync", str(run), "--killed"]) == 0
    assert stored(server.uri, "foreign").info.status == "RUNNING"
    assert main(["sync", str(run), "--killed"]) == 0
    assert stored(server.uri, "foreign").info.status == "KILLED"


@pytest.mark.long
@pytest.mark.parametrize(
    ("squeue", "cluster", "status"),
    [
        ("echo RUNNING", "here", "RUNNING"),
        ("true", "here", "KILLED"),
        ("echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1", "here", "KILLED"),
        ("echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1", "here", "RUNNING"),
        ("true", "elsewhere", "RUNNING"),  # a job of that number of another cluster says nothing
    ],
)
def test_slurm_says_whether_a_job_of_another_machine_is_gone(
    tmp_path: Path, server: MlflowServer, monkeypatch: pytest.MonkeyPatch, squeue: str, cluster: str, status: str
) -> None:
    """Commands with the answers of Slurm 22.05 stand in for it: what is tested is what they are taken to mean."""
    run = tmp_path / f"job-{abs(hash((squeue, cluster)))}"
    killed(run, server.uri)
    records = [record.as_json() for record, _ in read(run)]
    records[0]["open"]["process"] |= {"machine": "another", "job_id": "17", "cluster_name": "here"}
    journal_path(run).write_text("".join(json.dumps(record) + "\n" for record in records))
    (tmp_path / "bin").mkdir()
    for name, script in (("squeue", squeue), ("scontrol", f"echo 'ClusterName             = {cluster}'")):
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    assert main(["sync", str(run)]) == 0
    assert stored(server.uri, run.name).info.status == status
