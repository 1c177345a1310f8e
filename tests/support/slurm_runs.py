"""A training of seconds, as the tests on Slurm compare theirs with."""

import os
import subprocess
import sys
from pathlib import Path

from tests.support.tiny_runs import log

IMAGES = 2048
ONE_THREAD = {"OMP_NUM_THREADS": "1"}
"""Else a process alone on its node has more threads than two of one machine, and sums in another order."""


def on_one_machine(run: Path, *arguments: str) -> Path:
    """Train without Slurm; the run's folder."""
    command = [sys.executable, "-m", "jobs.cli", "train", *arguments, f"run={run}"]
    environment = os.environ | ONE_THREAD
    done = subprocess.run(command, cwd=run.parent, env=environment, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stdout + done.stderr + log(run)
    return run
