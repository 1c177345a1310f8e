"""What of a run's folder outlives its disk: in a cloud, a node is replaced with all that it had.

With `checkpoint.uri`, what makes another start the same run is beside the checkpoints, too: its id, its configuration, and
its failures so far. Nothing here reads the configuration's classes, which import this.
"""

import json
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from typing_extensions import TypedDict

from pipeline import storage
from pipeline.errors import ConfigError, UserError
from pipeline.fault_tolerance import stop
from pipeline.redaction import hidden
from pipeline.storage import run_lock, small_files
from pipeline.storage.best_effort import best_effort
from pipeline.storage.ownership import refuse_foreign
from pipeline.storage.removal import has, remove_files
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
    """Raise ConfigError if another run than `uid` is kept at `uri`, or files of somebody else are there."""
    known = _read(uri, "run.json") or b""
    if not has("uid")(known):
        advice = "set checkpoint.uri=NEW_FOLDER"
        refuse_foreign(f"checkpoint.uri={uri}", uri, advice, "a folder of checkpoints", partial(_holds_checkpoints, uri))
    elif json.loads(known)["uid"] != uid:
        raise ConfigError(f"checkpoint.uri={uri} holds the checkpoints of another run than run={run}: name another place")


def _holds_checkpoints(uri: str, names: list[str]) -> bool:
    """Whether checkpoints are there, or a start that was to make some, and no file of others that `begin` would replace."""
    from pipeline.checkpoint.fencing import holds_fence
    from pipeline.checkpoint.format import FOLDER
    from pipeline.checkpoint.rank_files import holds_any

    if set(names).intersection(_FILES):
        return False
    return holds_fence(uri, names) or any(FOLDER.fullmatch(name) and holds_any(storage.join(uri, name)) for name in names)


def refuse_foreign_run(run: str) -> None:
    """Raise ConfigError if the folder `run` has files and no run has begun there.

    A kill may have left our lock, and a request to stop may be older than the run.
    """

    def is_ours(names: list[str]) -> bool:
        known = {"lock": run_lock.is_lock, "STOP": stop.is_request}
        paths = [(Path(run, name), known.get(name)) for name in names]
        return all(proof and path.is_file() and proof(path.read_bytes()) for path, proof in paths)

    refuse_foreign(f"run={run}", run, "set run=NEW_RUN", "the folder of a run", is_ours)


def begin(run: str, uri: str) -> None:
    """Keep the folder `run` at `uri`, without the passwords and keys of its configuration: others may read that store."""
    storage.write_bytes(storage.join(uri, "run.json"), Path(run, "run.json").read_bytes())
    data = Path(run, "config.yaml").read_bytes()
    if (shown := hidden(config := yaml.safe_load(data))) != config:
        data = yaml.safe_dump(shown, sort_keys=False).encode()
    storage.write_bytes(storage.join(uri, "config.yaml"), data)


def keep(folder: Path, name: str, data: bytes, uri: str | None = None) -> None:
    """Write RUN/`name`, and to `uri`, where the run is kept, if it is elsewhere."""
    with best_effort(folder / name):
        storage.write_bytes(str(folder / name), data)
    if uri:
        storage.write_bytes(storage.join(uri, name), data)


def forget(uri: str, uid: str) -> None:
    """Remove that the run `uid` is kept at `uri`: the next start there is another's. Its run.json proves the others ours."""
    if has(uid=uid)(_read(uri, "run.json") or b""):
        remove_files(uri, _FILES)


def recover(run: str, uri: str) -> None:
    """On a disk without the folder `run`, make it from what the run of that name has kept at `uri`, if it has begun."""
    if Path(run, "run.json").exists() or not (config := _read(uri, "config.yaml")):
        return
    place = storage.join(uri, "config.yaml")
    if not has("uid")(_read(uri, "run.json") or b"") or small_files.parse_yaml(config, place).get("run") != run:
        return  # another run's, or files of somebody else, which `refuse_other` names
    found = {name: data for name in _FILES if (data := _read(uri, name))}
    if any(_read(run, name) not in (None, data) for name, data in found.items()):
        return  # so is what is here
    for name, data in found.items():
        storage.write_bytes(str(Path(run, name)), data)


def adopt(run: str, identity: dict[str, Any], anew: bool = False) -> None:
    """Make the folder of a node that does not share node 0's disk: the same run, by node 0's `identity`.

    Raises ConfigError if another run's is there, unless node 0 may have begun `anew`.
    """
    path = Path(run, "run.json")
    if not path.exists():
        refuse_foreign_run(run)
    if anew or not path.exists():
        storage.write_bytes(str(path), json.dumps(identity).encode())
    elif (found := small_files.read(_Named, path, RESTORE)) and found["uid"] != identity["uid"]:
        raise ConfigError(f"run={run} is another run on this node ({printable(found['uid'])}) than on node 0: name another run")


def keep_log(uri: str, file: Path, began: int, node: int) -> None:
    """Copy what a node's workers said in this start, from byte `began` on, the last 16 MB, to `uri`: its disk may go."""
    name = f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-node{node}.log"
    try:
        with open(file, "rb") as said:
            said.seek(max(began, file.stat().st_size - (16 << 20)))
            data = said.read()
        storage.write_bytes(storage.join(uri, "logs", name), data)
    except (UserError, OSError) as error:
        print(f"biggan: warning: the log {file} stays on this node: {error}", file=sys.stderr)


def _read(uri: str, name: str) -> bytes | None:
    try:
        return storage.read_bytes(storage.join(uri, name))
    except storage.NotFoundError:
        return None
