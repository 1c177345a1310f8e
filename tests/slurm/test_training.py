"""`biggan submit slurm` trains on two nodes of a real Slurm, and goes on after what happens to jobs there."""

import json
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from jobs.cli import main
from pipeline import storage
from pipeline.checkpoint import format
from pipeline.cluster import submission
from pipeline.runs.run_folder import RunState, read_status
from pipeline.tracking.mlflow_store import connect, store_uri
from tests.support.nodes import until
from tests.support.patterns import write_tree
from tests.support.servers import address
from tests.support.slurm import Slurm
from tests.support.slurm_runs import IMAGES, on_one_machine
from tests.support.tiny_runs import mlflow_runs, tensors_of

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.timeout(3000)]

PATIENCE = 900.0
"""Seconds for a training of 30, on a machine that has other things to do."""


def submit(config: str, run: Path, *arguments: str) -> str:
    """Submit a run on two nodes, as a user does; the job's id."""
    assert main(["submit", "slurm", config, f"run={run}", *arguments, "--nodes", "2"]) == 0
    found = submission.read(run)
    assert found
    return found.job


def newest(run: Path) -> int:
    """Images of the newest checkpoint; 0 without one."""
    found = next(format.committed(str(run / "checkpoints")), None)
    return found.images if found else 0


def comes_further(run: Path) -> None:
    """Return when there is a checkpoint beyond those that are there, and more to train."""
    before = newest(run)
    until(lambda: newest(run) > before, PATIENCE, f"a checkpoint after {before} images")
    assert newest(run) < IMAGES


def assert_untouched(run: Path, untouched: Path, attempts: int) -> None:
    """The run has ended as if nothing had happened in its `attempts` starts: parameters, status, one row for each step."""
    assert tensors_of(run, images=IMAGES) == tensors_of(untouched, images=IMAGES)
    assert read_status(run / "status.json") == RunState("finished", IMAGES, 0)
    assert max(path.name for path in (run / "checkpoints").glob("fence-*")) == f"fence-{attempts:010d}.json"
    records = [json.loads(line) for line in (run / "journal.jsonl").read_text().splitlines()]
    steps = [record["step"] for record in records if "loss/d" in record.get("metrics", ())]
    assert steps == list(range(64, IMAGES + 1, 64))
    assert records[-1]["close"] == "FINISHED"


def test_two_nodes_of_two_processes_are_one_machine_of_four(
    login: Slurm, small: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    keys = ["total_images=256", "sample_every=128", "tracking.mode=auto"]
    untouched = on_one_machine(tmp_path / "untouched", small, *keys, "processes=4")
    job = submit(small, run, *keys, "processes=2")
    out = capsys.readouterr().out
    assert f"job {job}: " in out and f"biggan status {run}" in out and f"{run}/logs/slurm-train-{job}.log" in out
    ended = login.until(job, "COMPLETED", seconds=PATIENCE)
    assert ended["Restarts"] == "0" and ended["NodeList"] == "n[1-2]"
    assert read_status(run / "status.json") == RunState("finished", 256, 0)
    assert tensors_of(run, ranks=4, images=256) == tensors_of(untouched, ranks=4, images=256)
    (found,), (same,) = mlflow_runs(run), mlflow_runs(untouched)
    assert found.info.status == "FINISHED" and found.data.tags["slurm.job_id"] == job
    client, other = connect(store_uri(run, None)), connect(store_uri(untouched, None))
    for key in ("loss/d", "loss/g", "grad_norm/d"):
        rows, expected = client.get_metric_history(found.info.run_id, key), other.get_metric_history(same.info.run_id, key)
        assert [(row.step, row.value) for row in rows] == [(row.step, row.value) for row in expected], key
    grids = [path.relative_to(run) for path in sorted((run / "samples").iterdir())]
    assert len(grids) == 2 and all((run / name).read_bytes() == (untouched / name).read_bytes() for name in grids)
    assert main(["status", str(run)]) == 0
    status = capsys.readouterr().out
    assert "finished" in status and "COMPLETED on n[1-2]" in status and "256 of 256 images (100%)" in status


def test_preempted_then_requeued_then_out_of_time(
    login: Slurm, small: str, untouched: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    monkeypatch.setenv("SBATCH_SIGNAL", "B:USR1@110")
    job = submit(small, run, "--time", "60")
    comes_further(run)
    urgent = ["--partition=urgent", "--nodes=3", "--exclusive", f"--output={tmp_path}/urgent.log", "--wrap", "sleep 1"]
    login.until(login.run("sbatch", "--parsable", *urgent).strip(), "COMPLETED")
    comes_further(run)
    login.run("scontrol", "requeue", job)
    login.until(job, "PENDING")
    comes_further(run)
    # The workers of a node stand still, so that the run cannot end before its time is nearly up. Slurm looks every 30 s.
    worker = ["-f", "[-]u -m jobs.cli train"]
    node = login.nodes[login.job(job)["BatchHost"]]
    node.run("pkill", "-STOP", *worker)
    minutes = 2 + sum(int(n) * 60**i for i, n in enumerate(reversed(login.job(job)["RunTime"].split(":")))) // 60
    login.run("scontrol", "update", f"jobid={job}", f"timelimit={minutes}")
    until(lambda: (run / "STOP").exists() and (run / "STOP").read_text() == "SIGUSR1", 90, "a request to stop")
    node.run("pkill", "-CONT", *worker)
    login.until(job, "PENDING")
    login.run("scontrol", "update", f"jobid={job}", "timelimit=60")
    assert login.until(job, "COMPLETED", seconds=PATIENCE)["Restarts"] == "3"
    assert_untouched(run, untouched, 4)


def test_a_node_is_lost_then_another_is_cut_off_and_comes_back(
    login: Slurm, small: str, untouched: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    job = submit(small, run)
    comes_further(run)
    login.nodes["n2"].crash()
    login.run("scontrol", "update", "nodename=n2", "state=down", "reason=crashed")
    login.until(job, "PENDING")
    login.boot("n2")
    comes_further(run)
    first = login.job(job)["BatchHost"]  # where rank 0 is, that saves
    login.nodes[first].cut()
    login.run("scontrol", "update", f"nodename={first}", "state=down", "reason=cut")
    login.until(job, "PENDING")
    comes_further(run)
    assert "jobs.cli train" in login.nodes[first].run("ps", "-eo", "args")  # two at a time, and one of them may save
    login.nodes[first].heal()
    login.run("scontrol", "update", f"nodename={first}", "state=resume")
    assert login.until(job, "COMPLETED", seconds=PATIENCE)["Restarts"] == "2"
    until(lambda: "jobs.cli" not in login.nodes[first].run("ps", "-eo", "args"), 60, "the old processes are gone")
    assert_untouched(run, untouched, 3)


def test_a_crash_is_gone_on_from_and_data_that_have_gone_are_not(
    login: Slurm, small: str, shards: Path, untouched: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    monkeypatch.setenv("BIGGAN_FAIL_AT", "commit:2")  # every start dies in its second save
    monkeypatch.setenv("BIGGAN_CRASHES", "1")
    job = submit(small, run, f"checkpoint.every={IMAGES // 2}")
    assert login.until(job, "COMPLETED", seconds=PATIENCE)["Restarts"] == "1"
    assert_untouched(run, untouched, 2)
    assert json.loads((run / "restarts.json").read_text()) == {"images": IMAGES // 2, "count": 1}

    data = tmp_path / "data"
    data.symlink_to(shards)
    job = submit(small, tmp_path / "other", f"data.uri={data}")
    data.unlink()
    assert login.until(job, "FAILED", seconds=PATIENCE)["ExitCode"] == "78:0"


def test_a_stop_ends_the_job_and_an_old_request_does_not_stop_the_next(
    login: Slurm, small: str, untouched: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    job = submit(small, run)
    capsys.readouterr()
    assert main(["submit", "slurm", small, f"run={run}", "--nodes", "2"]) == 78
    error = capsys.readouterr().err
    assert f"job {job}, " in error and error.count("\n") == 1
    login.until(job, "RUNNING")
    assert main(["status", str(run)]) == 0
    assert f"job {job}, RUNNING on n[1-2]" in capsys.readouterr().out
    comes_further(run)
    assert main(["stop", str(run), "--wait"]) == 0
    assert "stopped" in capsys.readouterr().out
    ended = login.until(job, "FAILED")
    assert (ended["ExitCode"], ended["Restarts"]) == ("75:0", "0") and newest(run) < IMAGES
    (run / "STOP").touch()
    assert login.until(submit(small, run), "COMPLETED", seconds=PATIENCE)
    assert_untouched(run, untouched, 2)


def test_a_global_batch_of_2048_from_a_bucket(
    login: Slurm, small: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open(tmp_path / "s3.log", "wb") as out:
        program = [sys.executable, "-c", "from moto.server import main; main()", "-p", "0", "-H", login.nodes.host]
        server = subprocess.Popen(program, stdout=out, stderr=out)
    try:
        endpoint = address(tmp_path / "s3.log", server, r"Running on (http://[\d.]+:\d+)")
        keys = {"AWS_ENDPOINT_URL": endpoint, "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
        for name, value in {**keys, "AWS_REGION": "us-east-1", "NO_PROXY": login.nodes.host}.items():
            monkeypatch.setenv(name, value)
        bucket = urllib.request.Request(f"{endpoint}/batch", method="PUT")
        urllib.request.build_opener(urllib.request.ProxyHandler({})).open(bucket, timeout=30).close()
        tree = write_tree(tmp_path / "tree", 512, grey=False)
        assert main(["shard", str(tree), "s3://batch/train", "--resolution", "32", "--shard-size", "1"]) == 0
        run, large = tmp_path / "run", ["batch.global_batch=2048", "batch.micro_batch=256", "batch.norm_group=256"]
        keys = ["data.uri=s3://batch/train", "checkpoint.uri=s3://batch/run", "batch.d_steps=1", "sample_every=0"]
        job = submit(small, run, *large, *keys, "processes=2", "total_images=4096", "checkpoint.every=2048")
        ended = login.until(job, "COMPLETED", seconds=PATIENCE)
        assert read_status(run / "status.json") == RunState("finished", 4096, 0), login.said(ended)
        assert "global batch 2048 = 4 ranks x 2 micro-batches of 256" in login.said(ended)
        assert sorted(name for name in storage.names("s3://batch/run") if name[0] == "0") == [
            "0000002048-0001",
            "0000004096-0001",
        ]
    finally:
        server.terminate()
        server.wait(timeout=30)
