"""The Slurm that other tests submit to: its machines, its faults, and how a test waits for it."""

import re
from pathlib import Path

import pytest

from tests.support.nodes import until
from tests.support.slurm import Slurm

pytestmark = [pytest.mark.slurm, pytest.mark.slow]


def submit(slurm: Slurm, folder: Path, script: str, *options: str) -> str:
    output = f"--output={folder}/%j.log"
    return slurm.run("sbatch", "--parsable", output, "--requeue", "--open-mode=append", *options, "--wrap", script).strip()


def test_a_step_runs_on_every_node_by_name(slurm: Slurm, tmp_path: Path) -> None:
    job = slurm.until(submit(slurm, tmp_path, "srun bash -c 'hostname; getent hosts n3'", "--nodes=3"))
    assert job["JobState"] == "COMPLETED"
    said = slurm.said(job).split()
    assert {"n1", "n2", "n3"} <= set(said) and said.count(slurm.nodes["n3"].address) == 3


def test_a_crashed_node_is_replaced_and_comes_back(slurm: Slurm, tmp_path: Path) -> None:
    step = f"srun bash -c 'touch {tmp_path}/up-$SLURM_PROCID; exec sleep 600'"
    number = submit(slurm, tmp_path, f'echo on $SLURM_JOB_NODELIST; [ -n "$SLURM_RESTART_COUNT" ] || {step}', "--nodes=2")
    # A node that crashes before that fails the step's launch, and its script with it.
    until(lambda: len(list(tmp_path.glob("up-*"))) == 2, 60, "the step runs on both nodes")
    slurm.nodes["n2"].crash()
    slurm.run("scontrol", "update", "nodename=n2", "state=down", "reason=crashed")
    job = slurm.until(number, "COMPLETED")
    assert job["Restarts"] == "1" and re.findall(r"^on (.*)$", slurm.said(job), re.M) == ["n[1-2]", "n[1,3]"]
    slurm.boot("n2")
    slurm.settle()


def test_nothing_outlives_its_job(slurm: Slurm, tmp_path: Path) -> None:
    orphan = f"srun bash -c 'setsid sleep 600 & sleep 0.2; touch {tmp_path}/done'"
    slurm.until(submit(slurm, tmp_path, orphan, "--nodelist=n1"))
    slurm.settle()
    assert (tmp_path / "done").exists() and "sleep 600" not in slurm.nodes["n1"].run("ps", "-eo", "args")
