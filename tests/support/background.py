"""Trainings in the background, as a user starts them, and waiting for what they say."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

STARTED: list[subprocess.Popen[bytes]] = []


class Started:
    """A process in the background, with its output in files."""

    def __init__(self, command: list[str], cwd: Path, env: dict[str, str] | None = None) -> None:
        self.out, self.err = (cwd / f"{time.monotonic_ns()}.{name}" for name in ("out", "err"))
        with open(self.out, "wb") as out, open(self.err, "wb") as err:
            self.process = subprocess.Popen(command, cwd=cwd, stdout=out, stderr=err, env=os.environ | (env or {}))
        STARTED.append(self.process)

    def until(self, text: str) -> None:
        wait_for(lambda: text in self.out.read_text() or self.process.poll() is not None)
        assert text in self.out.read_text(), self.out.read_text() + self.err.read_text()

    def end(self) -> int:
        return self.process.wait(timeout=250)


def wait_for(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + 250
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def biggan(config: str, run: Path, *overrides: str, prefix: Sequence[str] = ()) -> Started:
    return Started([*prefix, sys.executable, "-m", "jobs.cli", "train", config, f"run={run}", *overrides], run.parent)
