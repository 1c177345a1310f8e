"""The run's journal: all that tracking is told, one JSON object a line, in order, on local disk.

The training step only appends here; `pipeline.tracking.delivery` delivers it to MLflow. `pipeline.tracking.records` has the
kinds of record. Only one process writes it, the one that holds RUN/lock: it may cut off what it could not write whole. Others
have journals of their own, of `MetricsRecord` alone: each node (`pipeline.tracking.system_metrics`) and `biggan evaluate`,
whether the run is being trained or not.
"""

import errno
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar, cast

from pipeline.errors import DataError
from pipeline.redaction import hidden
from pipeline.tracking.records import ImageRecord, MetricsRecord, OpenRecord, Record
from pipeline.untrusted import parse

log = logging.getLogger(__name__)

T = TypeVar("T")


def journal_path(run_dir: Path) -> Path:
    return run_dir / "journal.jsonl"


def figures_path(run_dir: Path) -> Path:
    """The journal of `biggan evaluate`."""
    return run_dir / "evaluation" / "figures.jsonl"


def append_line(path: Path, record: Record) -> None:
    """Append one record, without its secrets, in a single write; a line that a killed process has torn ends before it."""
    line = json.dumps(hidden(record.as_json())).encode() + b"\n"
    with path.open("ab+", buffering=0) as file:  # closed each time: only then does NFS show it to other nodes
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 1))
        torn = file.read(1) not in (b"", b"\n")
        file.write(b"\n" * torn + line)


def read(run_dir: Path, offset: int = 0) -> Iterator[tuple[Record, int]]:
    """Each record of a run from byte `offset` on, with the offset after it."""
    yield from read_file(journal_path(run_dir), offset)


def read_file(path: Path, offset: int = 0) -> Iterator[tuple[Record, int]]:
    """Yield the same of one journal."""
    yield from read_lines(path, cast(type[Record], Record), offset)


def read_lines(path: Path, kind: type[T], offset: int = 0) -> Iterator[tuple[T, int]]:
    """Yield each line of a file as a `kind`, with the offset after it. A last line without its end is not there yet.

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
                yield parse(kind, line, str(path)), offset
            except DataError:
                log.warning("%s: the line that ends at byte %d is damaged and left out", path, offset)


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
            if isinstance(record, MetricsRecord | ImageRecord):
                for key in record.metrics if isinstance(record, MetricsRecord) else [record.image]:
                    self._highest[key] = max(record.step, self._highest.get(key, -1))
        self._file, self._end = path.open("ab", buffering=0), whole
        # The torn line of a process that was killed while it wrote: the next record must start a line of its own.
        self._file.truncate(whole)

    def append(self, record: Record) -> None:
        """Write one record at once, without its secrets. Raises OSError if the disk takes no more; then nothing of it is there.

        But `biggan sync` needs the tracking URI of an opening with its password: such a journal is for its owner alone.
        """
        shown = hidden(record.as_json())
        if isinstance(record, OpenRecord) and shown["open"]["uri"] != record.open.uri:
            shown["open"]["uri"] = record.open.uri
            os.fchmod(self._file.fileno(), os.fstat(self._file.fileno()).st_mode & 0o600)
        line = (json.dumps(shown) + "\n").encode()
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
