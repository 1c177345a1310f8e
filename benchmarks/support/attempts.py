"""A command that is started once, watched by its lines of progress, and killed with whatever it has started."""

import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from pipeline.liveness import started

HANGS = 300.0
"""Seconds after which an attempt is taken to hang."""


@dataclass(frozen=True)
class Process:
    """A process that cannot be mistaken for a later one with its id."""

    pid: int
    started: str

    def alive(self) -> bool:
        return started(self.pid) == self.started


class Attempt:
    """One start of the command; a thread keeps the lines that it prints."""

    def __init__(self, command: list[str], log: Path) -> None:
        self.began = time.monotonic()
        self.lines: list[str] = []
        self.log = log
        # A process group of its own would survive Ctrl-C on this benchmark, so the group stays; we clean up by id.
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self) -> None:
        assert self.process.stdout
        with self.log.open("a") as log:
            for line in self.process.stdout:
                self.lines.append(line)
                log.write(line)

    @property
    def images(self) -> int:
        """Images in the last line of progress; -1 before training starts."""
        for line in reversed(self.lines):
            if found := re.match(r"\s*([\d,]+) img ", line) or re.search(r"(?:from|at) image ([\d,]+) of", line):
                return int(found[1].replace(",", ""))
        return -1

    @property
    def first(self) -> int | None:
        """Images at which this attempt continued the training; None if it did not get that far."""
        found = (re.search(r"(?:from|at) image ([\d,]+) of", line) for line in list(self.lines))
        return next((int(match[1].replace(",", "")) for match in found if match), None)

    def wait_until(self, reached: Callable[[], bool]) -> bool:
        """Wait; return whether `reached` came true before the attempt ended. Raises SystemExit if it hangs."""
        while self.process.poll() is None:
            if reached():
                return True
            if time.monotonic() - self.began > HANGS:
                kill(processes_of(self.process.pid))
                raise SystemExit(f"benchmarks.kill_command: no end after {HANGS:.0f} s; see {self.log}")
            time.sleep(0.002)
        return False

    def end(self) -> int:
        """Wait for the end; return the exit code."""
        self.wait_until(lambda: False)
        # Not for the end of the output: an orphan that we are to find would keep that open.
        self.reader.join(1)
        return self.process.returncode


def processes_of(root: int) -> dict[int, list[str]]:
    """Return the command lines of process `root` and of all its descendants, by id."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (stat := _read(entry / "stat")):
            parents[int(entry.name)] = int(stat.rpartition(")")[2].split()[1])
    found = [root]
    for pid in found:  # grows while we walk it
        found += [child for child, parent in parents.items() if parent == pid]
    return {pid: command.split("\0") for pid in found if (command := _read(Path(f"/proc/{pid}/cmdline")))}


def kill(pids: Iterable[int]) -> None:
    """Send SIGKILL to each of `pids` that still exists."""
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""
