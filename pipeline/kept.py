"""What of a run's folder outlives its disk: in a cloud, a node is replaced with all that it had.

With `checkpoint.uri`, what makes another start the same run is beside the checkpoints, too: its id, its configuration, and
its failures so far. Nothing here reads the configuration's classes, which import this.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import yaml
from typing_extensions import TypedDict

from pipeline import notes, storage
from pipeline.errors import ConfigError, UserError
from pipeline.wording import printable

_FILES = ("health.json", "config.yaml", "run.json")
"""The last one makes the folder a run's."""


class _Named(TypedDict):
    uid: str


class Identity(_Named):
    """RUN/run.json."""

    dataset: str
    """Fingerprint of the images."""


RESTORE = "restore it from a copy, or set run=NEW_RUN to begin another run"
"""What to do where a file of a run is damaged that a resume cannot do without."""


def refuse_other(run: str, uri: str, uid: str) -> None:
    """Raises ConfigError if another run than `uid` is kept at `uri`."""
    if (known := _read(uri, "run.json")) and json.loads(known)["uid"] != uid:
        raise ConfigError(f"checkpoint.uri={uri} holds the checkpoints of another run than run={run}: name another place")


def begin(run: str, uri: str) -> None:
    """Keep the folder `run` at `uri`."""
    for name in ("run.json", "config.yaml"):
        storage.write_bytes(storage.join(uri, name), Path(run, name).read_bytes())


def keep(folder: Path, name: str, data: bytes) -> None:
    """Write RUN/`name`, and to where the run is kept."""
    storage.write_bytes(str(folder / name), data)
    config = Path(folder, "config.yaml")
    if config.exists() and (uri := yaml.safe_load(config.read_text())["checkpoint"]["uri"]):
        storage.write_bytes(storage.join(uri, name), data)


def forget(uri: str) -> None:
    """Remove which run is kept at `uri`: the next start there is another's."""
    for name in _FILES:
        storage.remove(storage.join(uri, name))


def recover(run: str, uri: str) -> None:
    """On a disk without the folder `run`, make it from what the run of that name has kept at `uri`, if it has begun."""
    if Path(run, "run.json").exists() or not (config := _read(uri, "config.yaml")):
        return
    if yaml.safe_load(config)["run"] == run:  # else another run's, which `refuse_other` names
        for name in _FILES:
            if data := _read(uri, name):
                storage.write_bytes(str(Path(run, name)), data)


def adopt(run: str, identity: dict[str, Any], anew: bool = False) -> None:
    """Make the folder of a node that does not share node 0's disk: the same run, by node 0's `identity`.

    Raises ConfigError if another run's is there, unless node 0 may have begun `anew`.
    """
    path = Path(run, "run.json")
    if anew or not path.exists():
        storage.write_bytes(str(path), json.dumps(identity).encode())
    elif (found := notes.read(_Named, path, RESTORE)) and found["uid"] != identity["uid"]:
        raise ConfigError(f"run={run} is another run on this node ({printable(found['uid'])}) than on node 0: name another run")


def keep_log(uri: str, file: Path, began: int, node: int) -> None:
    """Copy what a node's workers said in this start, from byte `began` on, the last 16 MB, to `uri`: its disk may go."""
    with open(file, "rb") as said:
        said.seek(max(began, file.stat().st_size - (16 << 20)))
        data = said.read()
    name = f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-node{node}.log"
    try:
        storage.write_bytes(storage.join(uri, "logs", name), data)
    except UserError as error:
        print(f"biggan: warning: the log {file} stays on this node: {error}", file=sys.stderr)


def _read(uri: str, name: str) -> bytes | None:
    try:
        return storage.read_bytes(storage.join(uri, name))
    except storage.NotFoundError:
        return None
