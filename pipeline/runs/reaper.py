"""The end of runs that could not tell it: a kill leaves their journal open, and MLflow at RUNNING.

The journal's `open` record says which process took the run up. Who comes later closes the journal for one that is gone, at
the time of its last record; delivery then sets MLflow's status.
"""

import contextlib
import threading
from collections import deque
from pathlib import Path
from typing import Literal

from pipeline.errors import ConfigError
from pipeline.liveness import machine, verdict
from pipeline.storage import trusted_stores
from pipeline.storage.run_lock import lock
from pipeline.tracking.delivery import Delivery
from pipeline.tracking.journal import Journal, read
from pipeline.tracking.mlflow_store import absolute
from pipeline.tracking.records import CloseRecord, Opening, OpenRecord
from pipeline.tracking.tracker import CLOSE_SECONDS, TrackingConfig


def reap(folder: Path, killed: bool = False) -> str | None:
    """Close the journal of a run whose process is gone, or that the user says was `killed`; returns what was found, as a line.

    None if the journal is closed already, or the run is being trained.
    """
    if not (opening := _unclosed(folder)):
        return None
    process = opening.process
    found = verdict(process) if process else "unknown"
    if found == "alive":
        return None
    try:
        held = lock(folder, patience=0)
    except ConfigError:
        return None
    with held:
        who = f"process {process['pid']} on {process['host']}" if process else "its process"
        if found == "unknown" and not killed:
            return f"still RUNNING: {who} has not told its end, and whether it lives cannot be seen here; if not, add --killed"
        if _unclosed(folder) != opening:
            return None
        _close(folder, "KILLED")
    return f"KILLED: {who} is gone"


def finish_failed(folder: Path, config: TrackingConfig) -> None:
    """Close and deliver what workers that have died left undone, for at most `CLOSE_SECONDS`. For their launcher."""
    records = deque(read(folder), maxlen=1)
    if not records or isinstance(records[0][0], CloseRecord):
        return
    opening = _unclosed(folder)
    if opening and (opening.process or {}).get("machine", machine()) != machine():
        return  # this machine was cut off, and taken for dead: the run goes on elsewhere
    with contextlib.suppress(OSError):  # a full disk, of which the workers have died themselves
        if opening:
            _close(folder, "FAILED")
    if config.mode == "auto":
        trusted_stores.note("send", [absolute(config.uri)])
        thread = threading.Thread(target=_deliver_quietly, args=(folder,), daemon=True)
        thread.start()
        thread.join(CLOSE_SECONDS)


def _deliver_quietly(folder: Path) -> None:
    with contextlib.suppress(Exception):  # the workers' failure is what is to be told; `biggan sync` says what is wrong here
        Delivery(folder).deliver()


def _close(folder: Path, status: Literal["FAILED", "KILLED"]) -> None:
    last = max(record.time for record, _ in read(folder))
    with contextlib.closing(Journal(folder)) as journal:
        journal.append(CloseRecord(time=last, close=status))


def _unclosed(folder: Path) -> Opening | None:
    """The last opening, unless an end follows it."""
    ends = [record for record, _ in read(folder) if isinstance(record, OpenRecord | CloseRecord)]
    return ends[-1].open if ends and isinstance(ends[-1], OpenRecord) else None
