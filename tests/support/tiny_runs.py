"""What tests of whole runs share: a small training as a user types it, what it left behind, and disks that fill up."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from jobs import cli
from pipeline.checkpoint import format
from pipeline.tracking.mlflow_store import connect, store_uri
from tests.support.ranks import run_ranks

# 2 ranks x 2 micro-batches, batch-norm groups that span both ranks, a D step more than G steps.
TINY: dict[str, Any] = {
    "total_images": 256,
    "model": {"resolution": 32, "num_classes": 4, "channels": 3, "ch": 4, "shared_dim": 8, "z_dim": 16},
    "batch": {"global_batch": 32, "micro_batch": 8, "norm_group": 16, "d_steps": 2},
    "data": {"flip": True},
    "optim": {"g_lr": 1e-3, "d_lr": 1e-3, "ema_half_life": 100, "ema_start": 64, "warmup": 128},
    "checkpoint": {"every": 64},
    "log_every": 64,
    "sample_every": 128,
    "processes": 2,
    "precision": "fp32",
}


def train(tiny: str, run: Path, *overrides: str, **environment: str) -> subprocess.CompletedProcess[str]:
    # -P: the installed command does not import from the working directory either.
    command = [sys.executable, "-P", "-m", "jobs.cli", "train", tiny, f"run={run}", *overrides]
    environ = os.environ | environment
    return subprocess.run(command, cwd=run.parent, env=environ, capture_output=True, text=True, timeout=280, check=False)


def train_forked(config: str, run: Path, *overrides: str, ranks: int = 2, **environment: str) -> str:
    """The workers of `train` without their launcher, to a good end, and what they said: 3 seconds where that takes 15."""
    said = run.parent / f"{time.monotonic_ns()}.log"
    threads = max(1, len(os.sched_getaffinity(0)) // ranks)  # as the launcher gives them: the same numbers to the last bit
    run_ranks(_worker, config, [f"run={run}", *overrides], ranks=ranks, log=said, OMP_NUM_THREADS=str(threads), **environment)
    return said.read_text()


def _worker(config: str, overrides: list[str]) -> None:
    sys.exit(cli.main(["train", config, *overrides]))


@dataclass(frozen=True)
class Resumed:
    """A run that ended at 128 images, whose newest checkpoint was then damaged, and that went on to 256. Read only."""

    run: Path
    first: subprocess.CompletedProcess[str]
    second: subprocess.CompletedProcess[str]
    uid: str
    mlflow_id: str


def log(run: Path) -> str:
    return (run / "logs" / "stderr.log").read_text()


def tensors_of(run: Path, uri: Path | None = None, ranks: int = 2, images: int = 256) -> dict[str, str]:
    """sha256 of both networks, both optimisers and the EMA in the newest checkpoint of `ranks` ranks."""
    found = format.newest(str(uri or run / "checkpoints"))
    assert found and found.images == images
    hashes = {name: row.sha256 for name, row in found.files.items() if name.endswith(".safetensors")}
    assert len(hashes) == ranks * 5
    return hashes


def mlflow_runs(run: Path) -> list[Any]:
    client = connect(store_uri(run, None))
    return list(client.search_runs([e.experiment_id for e in client.search_experiments()]))


def assert_one_line(stderr: str, code: int, expected_code: int, *parts: str) -> None:
    assert code == expected_code, stderr
    assert stderr.startswith("biggan: error: ") and stderr.count("\n") == 1, stderr
    assert "Traceback" not in stderr
    for part in parts:
        assert part in stderr


@contextmanager
def disk(folder: Path, size: str) -> Iterator[Path]:
    """A file system of its own, that can be full or read-only. Skips where this user may not mount one."""
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True, check=False)
    if done.returncode:
        pytest.skip("may not mount a file system here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def remount(folder: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", folder], check=True)


def fill(folder: Path) -> None:
    with open(folder / "filler", "wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass
