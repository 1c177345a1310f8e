"""What the tests on Slurm share: a training of seconds, and the same one that nobody has touched."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.support.slurm import Slurm
from tests.support.tiny_runs import TINY, log

ROOT = Path(__file__).parent.parent.parent
IMAGES = 2048
ONE_THREAD = {"OMP_NUM_THREADS": "1"}
"""Else a process alone on its node has more threads than two of one machine, and sums in another order."""


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory, shards: Path) -> str:
    """A file with a training of 32 updates, with a checkpoint after each."""
    file = tmp_path_factory.mktemp("config") / "small.yaml"
    quick = {"processes": 1, "peak_tflops": 1, "tracking": {"mode": "offline"}, "sample_every": 0, "stop": {"grace": 30}}
    more = {"total_images": IMAGES, "checkpoint": {"every": 64}, "data": {"uri": str(shards), "flip": True}}
    file.write_text(yaml.safe_dump(TINY | quick | more))
    return str(file)


@pytest.fixture(scope="session")
def untouched(small: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of `small` with 2 processes of one machine."""
    return on_one_machine(tmp_path_factory.mktemp("untouched") / "run", small, "processes=2")


def on_one_machine(run: Path, *arguments: str) -> Path:
    """Train without Slurm; the run's folder."""
    command = [sys.executable, "-m", "jobs.cli", "train", *arguments, f"run={run}"]
    environment = os.environ | ONE_THREAD
    done = subprocess.run(command, cwd=run.parent, env=environment, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stdout + done.stderr + log(run)
    return run


@pytest.fixture
def login(slurm: Slurm, monkeypatch: pytest.MonkeyPatch) -> Slurm:
    """Slurm, with this process on its login node."""
    for name, value in (slurm.env | ONE_THREAD).items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("BIGGAN_SITE", raising=False)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return slurm
