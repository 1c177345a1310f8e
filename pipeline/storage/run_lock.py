"""RUN/lock: one training at a time holds a run's folder, also where the file system has no locks."""

import json
import os
import time
from pathlib import Path
from typing import IO, Any, Literal

from pipeline.errors import ConfigError, DataError
from pipeline.liveness import Process, superseded, this_process, verdict
from pipeline.storage.file_locks import lock_file
from pipeline.storage.removal import has, remove
from pipeline.untrusted import parse


def lock(folder: Path, patience: float = 20.0) -> IO[str]:
    """Hold the run for this process's life. Raises ConfigError if another training keeps it for `patience` seconds.

    Says so where the file system knows no locks: then only the fence beside the checkpoints keeps two hosts apart.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file, locked = _acquire(Path(folder, "lock"), patience)
    if not locked:
        print(f"{folder} is on a file system without locks: do not train this run twice at a time", flush=True)
    file.truncate(0)
    file.write(json.dumps(this_process() | {"pid": os.getpid()}))
    file.flush()
    return file


def check_free(folder: Path, patience: float = 20.0) -> None:
    """Raise ConfigError if a training keeps the run for `patience` seconds. Writes nothing."""
    if Path(folder, "lock").exists():
        _acquire(Path(folder, "lock"), patience)[0].close()


def _acquire(path: Path, patience: float) -> tuple[IO[str], bool]:
    """The open file of a lock, and whether it is locked: some file systems cannot."""
    deadline = time.monotonic() + patience  # a training that was just killed takes a moment to go
    while True:
        file = open(path, "a+")  # noqa: SIM115 - it is held for the process's life
        state = _try_lock(file)
        if state != "held":
            return file, state == "locked"
        held_by = holder(file)
        file.close()
        if superseded(held_by):
            remove(str(path), is_lock)  # it keeps a lock that nobody looks at any more
        elif time.monotonic() > deadline:
            raise ConfigError(f"run={path.parent} is being trained by process {held_by.get('pid')}: stop that first") from None
        else:
            time.sleep(0.1)


def _try_lock(file: IO[str]) -> Literal["locked", "held", "unknown"]:
    """Lock a file. Where the file system has no locks, what its holder has written there tells whether it lives here."""
    if (state := lock_file(file)) != "unknown":
        return state
    held_by = holder(file)
    alive = "machine" in held_by and held_by.get("pid") != os.getpid() and verdict(held_by) == "alive"
    return "held" if alive else "unknown"


def is_training(folder: Path) -> bool:
    """Whether some training holds the run."""
    try:
        with open(folder / "lock", "r+") as file:
            return _try_lock(file) == "held" and not superseded(holder(file))
    except (FileNotFoundError, NotADirectoryError):
        return False


def holder(file: IO[str]) -> dict[str, Any]:
    """Return what the holder of a lock says of itself; nothing in the moment in which it writes that."""
    file.seek(0)
    try:
        return dict(parse(Process, file.buffer.read(), file.name))  # type: ignore[attr-defined]
    except DataError:
        return {}


def is_lock(data: bytes) -> bool:
    """Return whether RUN/lock is ours, by its content."""
    return not data or has("pid")(data)
