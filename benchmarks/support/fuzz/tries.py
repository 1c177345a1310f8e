"""Try one reader on damaged copies of its files, in processes that may die.

A try must end in silence or in a UserError, within `SECONDS`, with at most 10 times the bytes of its files plus 200 MB more
memory than before it, and without a file descriptor or a thread of what it read left in the way of the next one.
"""

import contextlib
import io
import multiprocessing
import os
import random
import re
import resource
import shutil
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from types import FrameType
from typing import Any

from benchmarks.support.fuzz.mutations import damage_folder
from pipeline.errors import UserError, as_user_error

SECONDS = 30.0
"""After which a try counts as hung. A reader of small files takes milliseconds; the machine may be busy."""
_MOST_MEMORY = 3 << 30
"""Of address space above that of the process as it began: what asks for more gets MemoryError."""
_SPARE = 200 << 20
_GRACE = 60.0
"""Seconds more, after which a try that does not even see its alarm, in a library, is killed."""
_ROOT, _OURS = Path(__file__).parents[3], ("pipeline", "jobs", "model", "benchmarks", "tests")
UNDAMAGED = "its own files, undamaged: "


@dataclass(frozen=True)
class Reader:
    """A kind of content, and the function that reads it."""

    name: str
    seeds: str
    """Folder of real files; each try has a copy of it."""
    files: tuple[str, ...]
    """Globs below it of the files that are damaged."""
    read: Callable[[Path], object]
    """Reads the copy."""
    repair: Callable[[Path], None] | None = None
    """Makes sums over the damaged files right again, as somebody with bad intentions does: in most tries."""


@dataclass(kw_only=True)
class Outcome:
    """The results of the tries of one reader."""

    tries: int = 0
    read: int = 0
    refused: int = 0
    lines: set[str] = field(default_factory=set)
    """Messages of the refusals, without names and numbers."""
    failures: list[tuple[int, str, str]] = field(default_factory=list)
    """(seed, what, traceback)."""
    slowest: float = 0.0
    """Seconds."""
    memory: int = 0
    """Bytes that a try took at most above what the process had before."""


def fuzz(reader: Reader, seeds: Path, first: int, tries: int | None, until: float) -> Outcome:
    """Try seeds `first`, `first` + 1, ... until there have been `tries`, or until `time.monotonic()` is `until`."""
    outcome = Outcome()
    fork = multiprocessing.get_context("fork")
    while outcome.tries != tries and (time.monotonic() < until or not outcome.tries):
        here, there = fork.Pipe(duplex=False)
        left = None if tries is None else tries - outcome.tries
        child = fork.Process(target=_child, args=(reader, seeds, first + outcome.tries, left, until, there))
        child.start()
        there.close()
        with here:
            ended = _listen(here, outcome, first)
        if not ended:
            child.kill()
        child.join()
        if not ended:
            what = "hangs" if child.exitcode == -signal.SIGKILL else f"died with {child.exitcode}"
            outcome.failures.append((first + outcome.tries, what, ""))
            outcome.tries += 1
        elif outcome.failures and outcome.failures[-1][1].startswith(UNDAMAGED):
            break
    return outcome


def _listen(pipe: Connection, outcome: Outcome, first: int) -> bool:
    """Add up what a child reports; return whether it came to its end."""
    with contextlib.suppress(EOFError):
        while pipe.poll(SECONDS + _GRACE):
            said: dict[str, Any] | None = pipe.recv()
            if said is None:
                return True
            outcome.tries += 1
            outcome.slowest = max(outcome.slowest, said["seconds"])
            outcome.memory = max(outcome.memory, said["memory"])
            if said["failure"]:
                outcome.failures.append((first + outcome.tries - 1, *said["failure"]))
            elif said["line"]:
                outcome.refused += 1
                outcome.lines.add(said["line"])
            else:
                outcome.read += 1
    return False


def _child(reader: Reader, seeds: Path, first: int, tries: int | None, until: float, pipe: Connection) -> None:
    with _quiet(), _scratch(seeds, reader) as work:
        try:
            reader.read(work.copy())  # what is imported or made once is no memory of a try; and undamaged files are read
        except BaseException as error:
            failure = (f"{UNDAMAGED}{_place(error)}", traceback.format_exc())
            pipe.send({"line": "", "failure": failure, "seconds": 0.0, "memory": 0})
            pipe.send(None)
            return
        space = _status("VmSize") + _MOST_MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (space, space))
        number = 0
        while number != tries and (time.monotonic() < until or not number):
            pipe.send(_try(reader, work, first + number))
            number += 1
        pipe.send(None)


@dataclass(frozen=True)
class _Scratch:
    source: Path
    folder: Path
    files: Sequence[str]

    def copy(self) -> Path:
        """A fresh copy of the seeds, always at the same path."""
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.copytree(self.source, self.folder)
        return self.folder


@contextlib.contextmanager
def _scratch(seeds: Path, reader: Reader) -> Iterator[_Scratch]:
    source = seeds / reader.seeds
    files = sorted({str(path.relative_to(source)) for glob in reader.files for path in source.glob(glob) if path.is_file()})
    if not files:
        raise RuntimeError(f"{reader.name}: no files {reader.files} in {source}")
    place = seeds / "work" / f"{reader.name}-{os.getpid()}"
    place.mkdir(parents=True)
    os.chdir(place)
    try:
        yield _Scratch(source, place / reader.seeds, files)
    finally:
        os.chdir(seeds)
        shutil.rmtree(place, ignore_errors=True)


def _try(reader: Reader, work: _Scratch, seed: int) -> dict[str, Any]:
    rng = random.Random(f"{reader.name} {seed}")
    folder = work.copy()
    done = damage_folder(folder, work.files, rng)
    if reader.repair and rng.random() < 0.8:
        with contextlib.suppress(Exception):  # of a file that is no longer of its format
            reader.repair(folder)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew
    before, began = _status("VmRSS"), time.monotonic()
    line, failure = "", None
    try:
        with _deadline(), _as_commands_do():
            reader.read(folder)
    except UserError as error:
        line = _bare(str(error), folder)
        if _asked_for_too_much(error):
            failure = ("asks for memory that a header claims", done + "\n" + traceback.format_exc())
        elif "\n" in str(error) or not str(error).isprintable():
            failure = ("a message of more than one line", done + "\n" + repr(str(error)))
    except BaseException as error:  # the harness reports whatever it is
        failure = (_place(error), done + "\n" + traceback.format_exc())
    seconds, memory = time.monotonic() - began, max(0, _status("VmHWM") - before)
    if not failure and memory > 10 * size + _SPARE:
        failure = (f"takes more than 10 x its files + {_SPARE >> 20} MiB", f"{done}: {memory:,} bytes for {size:,}")
    return {"line": line, "failure": failure, "seconds": seconds, "memory": memory}


@contextlib.contextmanager
def _as_commands_do() -> Iterator[None]:
    """Turn an error of the disk into one line, as `jobs.cli` does."""
    try:
        yield
    except OSError as error:
        if known := as_user_error(error):
            raise known from error
        raise


class _HangError(BaseException):
    """An error that no reader catches."""


@contextlib.contextmanager
def _deadline() -> Iterator[None]:
    def ring(signum: int, frame: FrameType | None) -> None:
        raise _HangError(f"no end after {SECONDS:.0f} s")

    signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _asked_for_too_much(error: BaseException | None) -> bool:
    while error and not isinstance(error, MemoryError):
        error = error.__cause__ or error.__context__
    return error is not None


def _place(error: BaseException) -> str:
    """Return the error's type and the innermost line of this project: `KeyError at pipeline/runs/run_folder.py:113`."""
    frames = [(Path(frame.filename), frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
    inside = [(path.relative_to(_ROOT), line) for path, line in frames if path.is_relative_to(_ROOT)]
    ours = [(path, line) for path, line in inside if path.parts[0] in _OURS]
    path, line = (ours or frames)[-1]
    return f"{type(error).__name__} at {path.as_posix()}:{line}"


def _bare(text: str, folder: Path) -> str:
    text = text.replace(str(folder), "DIR")
    return re.sub(r"\d+|'[^']*'|\S*/\S*", "#", text)[:60]


def _status(name: str) -> int:
    """Return bytes, from /proc/self/status."""
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) * 1024


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep prints of the readers and warnings of libraries out of the table."""
    os.environ |= {"MLFLOW_ENABLE_ASYNC_LOGGING": "false"}
    with open(os.devnull, "w") as nothing:
        for stream in (1, 2):
            os.dup2(nothing.fileno(), stream)
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
