"""Which stores the user has named on this machine: others, out of a file that somebody sent, are refused.

The file ADDRESSES holds a line for each, as `known_hosts` of ssh does: `read s3://bucket`, or `send http://host:5000` for an
MLflow that gets a run's records and the credentials of the environment. A training, `biggan submit`, `biggan index` and flags
add to it. Where it cannot be written, the flag is needed each time.
"""

import contextlib
import os
import shlex
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Literal

from pipeline.errors import ConfigError, DataError
from pipeline.storage.addresses import local_path
from pipeline.storage.containment import same_store, store_key
from pipeline.wording import hide_secrets, printable

Use = Literal["read", "send"]

_here: set[str] = set()
"""Lines of this process: they count where the file cannot be written."""


def addresses() -> Path:
    """Return the user's file of stores: $XDG_STATE_HOME/biggan/addresses, by default below ~/.local/state."""
    state = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    # A container may run as a user without a home.
    return Path(os.devnull if state.startswith("~") else state) / "biggan" / "addresses"


def note(use: Use, uris: Iterable[str | None]) -> None:
    """Remember that the user has named the stores of `uris` for this `use`."""
    lines = set()
    for uri in filter(None, uris):
        with contextlib.suppress(DataError):  # no address: said where it is used
            lines.add(f"{use} {_key(use, uri)}")
    new = sorted(line for line in lines - _lines() if "\n" not in line)
    _here.update(new)
    if new:
        with contextlib.suppress(OSError):  # then the flag is needed again
            addresses().parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            descriptor = os.open(addresses(), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            with open(descriptor, "wb") as file:
                file.write("".join(f"{line}\n" for line in new).encode(errors="surrogateescape"))


def is_named(use: Use, uri: str) -> bool:
    """Whether the user has named the store of `uri`; a local place counts below a folder that was named, too."""
    try:
        key = _key(use, uri)
    except DataError:
        return False
    known = {line.partition(" ")[2] for line in _lines() if line.startswith(f"{use} ")}
    if key in known or not key.startswith("file://"):
        return key in known
    return any(f"file://{folder}" in known for folder in Path(key.removeprefix("file://")).parents)


def check_read(own: str, other: str, said_in: object, allowed: Collection[str] | None = None) -> None:
    """Raise ConfigError unless `other`, which the file `said_in` in the store of `own` names, may be read.

    It may be in the same store, or in one that the user has named or, in data.allow, `allowed`.
    """
    if same_store(own, other) or is_named("read", other) or any(_covers(one, other) for one in allowed or ()):
        return
    store = printable(store_key(other))
    key = f" or, for a training, set {shlex.quote(f'data.allow=[{store}]')}" if allowed is not None else ""
    raise ConfigError(
        f"{said_in} names {printable(hide_secrets(other))[:200]}, which is in another store than its own: if you trust it, "
        f"add --allow {shlex.quote(store)}{key}"
    )


def check_send(folder: Path, uri: str) -> None:
    """Raise ConfigError unless records of the run in `folder` may be sent to the MLflow `uri`, which its journal names.

    It may be the store in the folder, $MLFLOW_TRACKING_URI, or one that the user has named.
    """
    key, mine = _key("send", uri), os.environ.get("MLFLOW_TRACKING_URI")
    own = f"file://{folder.resolve() / 'mlflow.db'}"
    if key == own or is_named("send", uri) or (mine and _key("send", mine) == key):
        return
    raise ConfigError(
        f"the journal of {folder} names MLflow at {printable(hide_secrets(uri))[:200]}, to which nothing was sent from this "
        f"machine before: if you trust it with the run and your credentials, set MLFLOW_TRACKING_URI to it, or deliver with "
        f"{_sync(folder, uri)}"
    )


def _key(use: Use, uri: str) -> str:
    # MLflow has stores that are one word, such as databricks.
    return store_key(uri) if use == "read" or "/" in uri else uri


def _covers(allowed: str, other: str) -> bool:
    folder, place = local_path(allowed), local_path(other)
    if folder and place:
        return place.absolute().resolve().is_relative_to(folder.absolute().resolve())
    return same_store(allowed, other)


def _sync(folder: Path, uri: str) -> str:
    from pipeline.wording import command

    return command("sync", folder, "--tracking", printable(hide_secrets(uri))[:200])


def _lines() -> set[str]:
    try:
        kept = addresses().read_text(errors="surrogateescape").splitlines()
    except OSError:
        kept = []
    return _here.union(kept)
