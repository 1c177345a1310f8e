"""Sqlite stores that are not where they were made: MLflow keeps absolute paths of the artifacts in them.

Where the folder was moved, what writes to the store first makes it point to the artifacts beside it. A copy, whose original is
still there, is changed only when the user says so; what only reads takes a temporary copy of the store that points there.
"""

import contextlib
import logging
import os
import sqlite3
from dataclasses import dataclass
from os.path import exists  # a place that may not be looked at is none; pathlib's raises
from pathlib import Path
from urllib.parse import unquote, urlsplit

from pipeline.errors import ConfigError
from pipeline.storage.run_lock import holder, is_training
from pipeline.storage.temporary import until_exit
from pipeline.tracking.journal import journal_path
from pipeline.tracking.mlflow_store import calm_mlflow, sqlite_file, sqlite_uri
from pipeline.wording import command, plural

log = logging.getLogger(__name__)

_COLUMNS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "storage_location"),
    ("model_versions", "source"),
)
"""Where MLflow 3 keeps places of artifacts; a column may be missing in the store of another version."""


@dataclass(frozen=True)
class _Moved:
    """A store, and the folders of artifacts elsewhere that it names."""

    file: Path
    old: list[Path]

    @property
    def new(self) -> Path:
        return self.file.resolve().parent / "artifacts"

    @property
    def is_own(self) -> bool:
        """Whether it is the store of the run in whose folder it is."""
        return journal_path(self.file.parent).exists()


def settle(uri: str, *, moved: bool = False) -> None:
    """Make the store at `uri` ready to be written: if it was moved, its artifacts are those beside it from now on.

    `moved`: also if there is something at the place where it was made. Raises ConfigError there without it, and for a store
    whose run is being trained under another path.
    """
    if not (found := _look(uri)):
        return
    there = next((place.parent for place in found.old if exists(place) or exists(place.parent / found.file.name)), None)
    if there and not moved:
        run = [found.file.parent] if found.is_own else ["RUN", "--tracking", uri]
        raise ConfigError(
            f"{found.file} is a copy: its artifacts are still those in {there}, where nothing is written from here: "
            f"{command('sync', *run, '--moved')} makes it a store of its own, with the artifacts in {found.new}"
        )
    if _is_trained_elsewhere(found.file.parent):
        raise ConfigError(f"{found.file.parent} is being trained, under another path: wait until that has ended")
    with contextlib.closing(sqlite3.connect(found.file, timeout=30)) as store:
        left = _point_to(store, found)
    log.warning("%s was made in %s: its artifacts are those in %s from now on", found.file, found.old[0].parent, found.new)
    if left:
        log.warning("%s only in %s, and can be loaded from there alone", plural(left, "model is", "models are"), found.old[0])


def for_reading(uri: str) -> str:
    """Return `uri`, or that of a temporary copy of its store that points to the artifacts beside the store."""
    if not (found := _look(uri)):
        return uri
    file = until_exit("biggan-store-") / found.file.name
    with contextlib.closing(_read_only(found.file)) as store, contextlib.closing(sqlite3.connect(file)) as copy:
        store.backup(copy)
        _point_to(copy, found)
    return sqlite_uri(file)


def _look(uri: str) -> _Moved | None:
    """Return what was moved; None if nothing was, or if the store is none whose artifacts are beside it."""
    file = sqlite_file(uri)
    if not file or not file.is_file():
        return None
    found = _Moved(file, [])
    if not found.is_own and not found.new.is_dir():
        return None
    with contextlib.closing(_read_only(file)) as store:
        try:
            rows = store.execute("SELECT DISTINCT artifact_location FROM experiments").fetchall()
        except sqlite3.DatabaseError:  # no store of MLflow, which says so itself
            return None
    places = {_path(value) for (value,) in rows if str(value).startswith("file:")}
    found.old.extend(sorted(place for place in places if place.name == "artifacts" and not _is_same(place, found.new)))
    return found if found.old else None


def _read_only(file: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"{file.resolve().as_uri()}?mode=ro", uri=True, timeout=30)


def _path(uri: str) -> Path:
    return Path(unquote(urlsplit(uri, allow_fragments=False).path))


def _is_same(one: Path, other: Path) -> bool:
    """Whether both are one folder, if only by a link."""
    return one == other or (exists(one) and exists(other) and one.samefile(other))


def _point_to(store: sqlite3.Connection, found: _Moved) -> int:
    """Change every place below the old folders, in one transaction; returns how many models have their files only there."""
    calm_mlflow()
    from mlflow.tracking._tracking_service import utils

    new, left = found.new, set()
    with store:
        for table, column in _COLUMNS:
            if column not in [row[1] for row in store.execute(f"PRAGMA table_info({table})")]:
                continue
            for (value,) in store.execute(f"SELECT DISTINCT {column} FROM {table} WHERE {column} LIKE 'file:%'").fetchall():
                place = _path(value)
                if not (old := next((old for old in found.old if place.is_relative_to(old)), None)):
                    continue
                moved = new / place.relative_to(old)
                if table in ("logged_models", "model_versions") and exists(place) and not exists(moved):
                    left.add(place)
                    continue
                store.execute(f"UPDATE {table} SET {column} = ? WHERE {column} = ?", (moved.as_uri(), value))
    utils._artifact_repos_cache.clear()  # this process may have looked a place up before
    return len(left)


def _is_trained_elsewhere(folder: Path) -> bool:
    """Whether another process trains the run in `folder`: it has looked up where its artifacts go."""
    if not is_training(folder):
        return False
    with contextlib.suppress(OSError), open(folder / "lock") as file:
        return holder(file).get("pid") != os.getpid()
    return True
