"""The run's journal: all that tracking is told, one JSON object a line, in order, on local disk.

The training step only appends here; `pipeline.tracking.delivery` delivers it to MLflow. Kinds of record, each with `time` in
milliseconds since 1970: `open` (a process took the run up), `metrics` and `image` (with `step`, in images), `text` (an
artifact with its content), `artifact` (a file of the run's folder) and `close` (the run's status). Only one process writes
it, the one that holds RUN/lock: it may cut off what it could not write whole. Others have journals of their own, of `metrics`
alone: each node (`pipeline.tracking.system_metrics`) and `biggan evaluate`, whether the run is being trained or not.
"""

import errno
import json
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Required

from pydantic import Field
from typing_extensions import TypedDict

from pipeline.errors import DataError
from pipeline.liveness import Process
from pipeline.redaction import hidden
from pipeline.untrusted import parse

log = logging.getLogger(__name__)

Record = dict[str, Any]

_Moment = Annotated[int, Field(ge=0, lt=253_402_300_800_000)]
"""Milliseconds since 1970, before the year 10,000."""
_Step = Annotated[int, Field(ge=0, lt=1 << 63)]


class _Dataset(TypedDict):
    name: str
    uri: str
    fingerprint: str
    profile: str


class _Opening(TypedDict, total=False):
    uid: Required[str]
    mode: str
    uri: Required[str | None]
    experiment: Required[str]
    params: Required[dict[str, str]]
    tags: Required[dict[str, str]]
    datasets: list[_Dataset]
    process: Process


class _Record(TypedDict, total=False):
    """Any kind of line, with the keys of the others left out."""

    time: Required[_Moment]
    open: _Opening
    metrics: dict[str, float]
    step: _Step
    recipe: str
    image: str
    file: str
    text: str
    path: str
    artifact: str
    close: str
    host: str


_TOGETHER = {"metrics": {"step"}, "image": {"step", "file"}, "text": {"path"}}
"""Keys that need others."""


class Event(TypedDict):
    """A line of RUN/events.jsonl (`pipeline.fault_tolerance.health`)."""

    time: Annotated[float, Field(ge=0, lt=253_402_300_800)]
    """Seconds since 1970."""
    kind: str
    images: _Step
    rollbacks: _Step
    text: str


def journal_path(run_dir: Path) -> Path:
    return run_dir / "journal.jsonl"


def figures_path(run_dir: Path) -> Path:
    """The journal of `biggan evaluate`."""
    return run_dir / "evaluation" / "figures.jsonl"


def append_line(path: Path, **record: Any) -> None:
    """Append one record, without its secrets, in a single write; a line that a killed process has torn ends before it."""
    line = json.dumps({"time": int(time.time() * 1000), **hidden(record)}).encode() + b"\n"
    with path.open("ab+", buffering=0) as file:  # closed each time: only then does NFS show it to other nodes
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 1))
        torn = file.read(1) not in (b"", b"\n")
        file.write(b"\n" * torn + line)


def read(run_dir: Path, offset: int = 0) -> Iterator[tuple[Record, int]]:
    """Each record of a run from byte `offset` on, with the offset after it."""
    yield from read_file(journal_path(run_dir), offset)


def read_file(path: Path, offset: int = 0, kind: type[Any] = _Record) -> Iterator[tuple[Record, int]]:
    """Yield the same of one file, whose lines are of a `kind`. A last line without its end is not there yet.

    Damaged lines are left out, with a warning: a power cut can leave a block of zeros, and the file may come from others.
    """
    if not path.exists():
        return
    if not path.is_file():
        log.warning("%s is no file and is left out", path)
        return
    with path.open("rb") as file:
        file.seek(offset)
        for line in file:
            if not line.endswith(b"\n"):
                return
            offset += len(line)
            try:
                record: Record = parse(kind, line, str(path))
            except DataError:
                record = {}
            if not record or (kind is _Record and not _is_whole(record)):
                log.warning("%s: the line that ends at byte %d is damaged and left out", path, offset)
                continue
            yield record, offset


def _is_whole(record: Record) -> bool:
    return all(others <= record.keys() for key, others in _TOGETHER.items() if key in record)


class Journal:
    """Appends records; one row per (key, step) whatever is replayed after a resume.

    A run that resumes from an older checkpoint repeats some steps. Its rows at or below a key's highest step so far are
    dropped: MLflow would keep both, and its charts would draw both.
    """

    def __init__(self, run_dir: Path):
        path = journal_path(run_dir)
        self._highest: dict[str, int] = {}
        whole = 0
        for record, end in read(run_dir):
            whole = end
            for key in [*record.get("metrics", ()), *([record["image"]] if "image" in record else ())]:
                self._highest[key] = max(record["step"], self._highest.get(key, -1))
        self._file, self._end = path.open("ab", buffering=0), whole
        # The torn line of a process that was killed while it wrote: the next record must start a line of its own.
        self._file.truncate(whole)

    def append(self, **record: Any) -> None:
        """Write one record at once, without its secrets. Raises OSError if the disk takes no more; then nothing of it is there.

        But `biggan sync` needs the tracking URI of an opening with its password: such a journal is for its owner alone.
        """
        shown = hidden(record)
        if "open" in record and shown["open"].get("uri") != (uri := record["open"].get("uri")):
            shown["open"]["uri"] = uri
            os.fchmod(self._file.fileno(), os.fstat(self._file.fileno()).st_mode & 0o600)
        line = (json.dumps({"time": int(time.time() * 1000), **shown}) + "\n").encode()
        try:
            if self._file.write(line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self._file.name)
        except OSError:
            self._file.truncate(self._end)
            raise
        self._end += len(line)

    def is_new(self, key: str, step: int) -> bool:
        """Whether `key` has no row at `step` or later yet; from now on it has."""
        if step <= self._highest.get(key, -1):
            return False
        self._highest[key] = step
        return True

    def close(self) -> None:
        self._file.close()
