"""`biggan submit slurm` before anything is queued: what it refuses, what it prints, what it freezes. On a real Slurm."""

import fcntl
import json
import os
from pathlib import Path

import pytest
import yaml

from jobs.cli import main
from pipeline.cluster import submission
from tests.support.slurm import Slurm
from tests.support.slurm_runs import IMAGES
from tests.support.tiny_runs import assert_one_line

pytestmark = [pytest.mark.slurm, pytest.mark.slow]


@pytest.fixture
def small(small: str, tmp_path: Path) -> str:
    """With 2 processes of each node, which one node can train."""
    file = tmp_path / "two.yaml"
    file.write_text(yaml.safe_dump(yaml.safe_load(Path(small).read_text()) | {"processes": 2}))
    return str(file)


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str], *parts: str, code: int = 78) -> None:
    capsys.readouterr()
    ended = main(["submit", "slurm", *arguments])
    assert_one_line(capsys.readouterr().err, ended, code, *parts)


@pytest.fixture
def partition(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SBATCH_PARTITION", "nowhere")


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (
            ["--nodes", "4", "batch.micro_batch=4"],
            ["Slurm refuses this request", "node configuration", "main: 3 nodes of 8 CPUs"],
        ),
        (["--nodes", "2", "--gpus-per-node", "9"], ["Slurm refuses this request", "gpu:8"]),
        (["--time", "99-00:00:00"], ["--time=99-00:00:00 is more than its partition allows", "at most 1-00:00:00"]),
        (["--time", "00:04:00"], ["the time limit 00:04:00 leaves no time to train", "300 s before", "pass --time 10 or more"]),
        (["--time", "soon"], ["Slurm refuses this request", "time"]),
        (["--site", "nowhere.sh"], ["--site nowhere.sh: there is no such file", "site.example.sh"]),
        (["--then", "evaluate,deploy"], ["--then deploy: there are evaluate, register"]),
        (["--nodes", "0"], ["--nodes 0: must be at least 1"]),
        (["batch.global_batch=40"], ["batch.norm_group=16", "batch.global_batch=32 or batch.global_batch=48"]),
        (["--nodes", "3"], ["batch.global_batch=32", "6 ranks"]),
        (["optim.g_lrr=1"], ["optim.g_lrr", "optim.g_lr?"]),
        (["data.uri=nowhere"], ["no shards at /", "/nowhere"]),
        (["init=nowhere"], ["nowhere"]),
    ],
)
def test_a_mistake_is_one_line_before_anything_is_queued(
    login: Slurm, small: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], parts: list[str]
) -> None:
    refused([small, f"run={tmp_path}/run", *arguments], capsys, *parts)
    assert login.run("squeue", "-h") == "" and not (tmp_path / "run").exists()


def test_an_unknown_partition(
    login: Slurm, partition: None, small: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refused([small, f"run={tmp_path}/run"], capsys, "Invalid partition", "partitions here: main: 3 nodes")
    assert not (tmp_path / "run").exists()


def test_a_site_file_that_fails(login: Slurm, small: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "site.sh").write_text("module load cuda\n")
    refused(
        [small, f"run={tmp_path}/run", "--site", f"{tmp_path}/site.sh"], capsys, "exit code 127", "module: command not found"
    )


def test_a_site_names_partition_and_time(login: Slurm, small: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "site.sh").write_text("export SBATCH_PARTITION=urgent SBATCH_TIMELIMIT=33\n")
    login.run("scontrol", "update", "partitionname=urgent", "state=down")
    try:
        assert main(["submit", "slurm", small, f"run={tmp_path}/run", "--site", f"{tmp_path}/site.sh"]) == 0
        found = submission.read(tmp_path / "run")
        assert found
        job = login.job(found.job)
        assert (job["JobState"], job["Partition"], job["TimeLimit"]) == ("PENDING", "urgent", "00:33:00")
        frozen = tmp_path / "run" / "submission"
        assert (frozen / "site.sh").read_text() == (tmp_path / "site.sh").read_text()
        config = yaml.safe_load((frozen / "config.yaml").read_text())
        assert config["run"] == f"{tmp_path}/run" and config["total_images"] == IMAGES
        code = json.loads((frozen / "code.json").read_text())
        assert len(code["sha256"]) == 64 and code["dirty"] in ("true", "false", "unknown")

        refused([small, f"run={tmp_path}/run"], capsys, f"job {found.job}, PENDING (PartitionDown)", "biggan stop")
        assert main(["status", f"{tmp_path}/run"]) == 0
        said = capsys.readouterr().out
        assert "has not begun" in said and f"Slurm job {found.job}, PENDING" in said and "none yet" in said
        assert main(["stop", f"{tmp_path}/run"]) == 0
        assert "has been taken from the queue" in capsys.readouterr().out
        assert login.job(found.job)["JobState"] == "CANCELLED"
        assert main(["stop", f"{tmp_path}/run"]) == 78
    finally:
        login.run("scontrol", "update", "partitionname=urgent", "state=up")


def test_a_dry_run_prints_and_queues_nothing(
    login: Slurm, small: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["submit", "slurm", small, f"run={tmp_path}/run", "--nodes", "2", "--time", "10", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("#!/usr/bin/env bash") and "#SBATCH --requeue" in said
    assert f"{tmp_path}/run/submission/train.sbatch {tmp_path}/run/submission/config.yaml\n" in said
    assert "--nodes=2 --time=10" in said and "to start at" in said
    assert login.run("squeue", "-h") == "" and not (tmp_path / "run").exists()


def test_what_follows_waits_for_the_training(
    login: Slurm, small: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    login.run("scontrol", "update", "partitionname=main", "state=down")
    try:
        assert main(["submit", "slurm", small, f"run={tmp_path}/run", "--then", "evaluate,register"]) == 0
        found = submission.read(tmp_path / "run")
        assert found and list(found.then) == ["evaluate", "register"]
        assert f"then evaluate as job {found.then['evaluate']}, then register as job" in capsys.readouterr().out
        waits = [login.job(number)["Dependency"] for number in found.then.values()]
        assert waits == [f"afterok:{found.job}(unfulfilled)", f"afterok:{found.then['evaluate']}(unfulfilled)"]
        assert main(["stop", f"{tmp_path}/run"]) == 0
        assert [login.until(number)["JobState"] for number in found.then.values()] == ["CANCELLED", "CANCELLED"]
    finally:
        login.run("scontrol", "update", "partitionname=main", "state=up")


def test_two_who_submit_at_once(login: Slurm, small: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run").mkdir()
    from pipeline.config import load_config

    with submission.submitted_alone(load_config(small, [f"run={tmp_path}/run"])):
        refused([small, f"run={tmp_path}/run"], capsys, "being submitted by somebody else")
    with open(tmp_path / "run" / "lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        refused([small, f"run={tmp_path}/run"], capsys, "is being trained")
    assert login.run("squeue", "-h") == ""


def test_without_slurm_here(
    small: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    refused([small, f"run={tmp_path}/run"], capsys, "there is no sbatch here", "login node")


def test_slurm_that_does_not_answer(
    login: Slurm, small: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    elsewhere = (login.folder / "slurm.conf").read_text().replace("SlurmctldPort=", "SlurmctldPort=1")
    (tmp_path / "slurm.conf").write_text(elsewhere.replace("AuthType", "MessageTimeout=5\nAuthType"))
    monkeypatch.setenv("SLURM_CONF", str(tmp_path / "slurm.conf"))
    refused([small, f"run={tmp_path}/run"], capsys, "Slurm does not answer", code=69)
    assert not os.path.exists(tmp_path / "run")
