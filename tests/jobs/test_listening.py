"""Who listens where, while commands of several processes run on one machine: nobody but on the loopback."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@contextmanager
def watched(process: "subprocess.Popen[bytes]") -> Iterator[set[str]]:
    """Addresses at which the process or its descendants listen, from now to their end."""
    found: set[str] = set()
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(0.05):
            for one in _family(process.pid):
                try:
                    found.update(c.laddr.ip for c in one.net_connections("inet") if c.status == psutil.CONN_LISTEN)
                except psutil.Error:  # it has just ended
                    continue

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield found
    finally:
        ended.set()
        thread.join()


def _family(pid: int) -> list[psutil.Process]:
    try:
        return [process := psutil.Process(pid), *process.children(recursive=True)]
    except psutil.Error:
        return []


def addresses(*command: object, cwd: Path) -> set[str]:
    """Where `biggan COMMAND` listened, to a good end."""
    words = [sys.executable, "-m", "jobs.cli", *map(str, command)]
    with subprocess.Popen(words, cwd=cwd, stderr=subprocess.PIPE) as process, watched(process) as found:
        _, said = process.communicate()
    assert process.returncode == 0, said.decode()
    return found


def test_a_training_that_tries_micro_batches(tiny: str, tmp_path: Path) -> None:
    keys = ("total_images=64", "tracking.mode=off", "batch.micro_batch=auto", "sample_every=0")
    assert addresses("train", tiny, f"run={tmp_path}/run", *keys, cwd=tmp_path) == {"127.0.0.1"}
    assert (tmp_path / "run" / "micro_batch.json").exists()


def test_an_evaluation_of_two_processes(run_folder: Path, tmp_path: Path) -> None:
    found = addresses("evaluate", run_folder, "--processes", "2", "--samples", "300", "--metrics", "prdc", cwd=tmp_path)
    assert found == {"127.0.0.1"}
