"""A run's folder: what a start finds there, what it may continue, and how workers tell their launcher how they ended.

RUN/config.yaml   resolved configuration         RUN/status.json  how far, how it ended
RUN/run.json      the run's own id               RUN/lock         held by the training that writes here
"""

import json
import os
import uuid
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from model.config import from_saved
from pipeline import storage, variables
from pipeline.checkpoint import format as checkpoints
from pipeline.checkpoint.format import Checkpoint
from pipeline.checkpoint.saved_network import networks_of
from pipeline.config import RunConfig, build, flatten, located, to_yaml
from pipeline.data.manifest import Manifest
from pipeline.errors import ConfigError, DataError
from pipeline.fault_tolerance import run_mirror
from pipeline.redaction import hidden
from pipeline.runs.trusted_places import kept_checkpoints
from pipeline.storage import small_files
from pipeline.storage.best_effort import best_effort
from pipeline.tracking import journal
from pipeline.tracking.records import OpenRecord
from pipeline.untrusted import parsing
from pipeline.wording import command, plural

_FIXED = ("model.", "seed", "init", "optim.optimizer", "data.lanes")
"""Keys that a resume may not change: the weights, the order or the optimiser's state would no longer fit."""


@dataclass(frozen=True)
class RunState:
    """How a run stands. `state` is running, finished, stopped or failed; a crash leaves running."""

    state: str
    images: Annotated[int, Field(ge=0, le=small_files.BIG)] = 0
    exit_code: Annotated[int, Field(ge=-255, le=255)] | None = None
    message: str = ""


def prepare(config: RunConfig, manifest: Manifest) -> list[str]:
    """Make or check the run's folder; returns what a resume changes, as lines. Idempotent.

    Raises ConfigError if the folder cannot be written, holds something else, or a change would make the result wrong;
    DataError if what it holds is damaged.
    """
    changes, identity = check(config, manifest)
    config, folder = as_begun(config), Path(config.run)
    if not Path(folder, "run.json").exists():
        storage.write_bytes(str(folder / "run.json"), json.dumps(identity).encode())
    storage.write_bytes(str(folder / "config.yaml"), to_yaml(config).encode())
    if config.checkpoint.uri:
        run_mirror.begin(config.run, config.checkpoint.uri)
    return changes


def check(config: RunConfig, manifest: Manifest) -> tuple[list[str], dict[str, Any]]:
    """Return what a resume changes, as lines, and the run's identity, a new one for a new run. Writes nothing.

    Raises as `prepare`.
    """
    config = as_begun(config)
    folder = Path(config.run)
    old = _saved_config(folder) if Path(folder, "config.yaml").exists() else None
    if not (old or Path(folder, "run.json").exists()):
        run_mirror.refuse_foreign_run(config.run)
    # A folder of an earlier version may hold paths as they were typed.
    changes = _changes(flatten(located(old)), flatten(located(config))) if old else []
    identity = {"uid": uuid.uuid4().hex, "dataset": manifest.fingerprint}
    if Path(folder, "run.json").exists():
        identity = read_identity(folder)
        if identity["dataset"] != manifest.fingerprint:
            raise ConfigError(
                f"data.uri={config.data.uri} holds other shards than run={config.run} began with: name another run"
            )
    if config.checkpoint.uri:
        run_mirror.refuse_other(config.run, config.checkpoint.uri, identity["uid"])
    return changes, identity


def as_begun(config: RunConfig) -> RunConfig:
    """`config`, with what RUN/config.yaml has, if it is there, in place of `precision=auto` and of a D's halvings."""
    if not Path(config.run, "config.yaml").exists():
        return config
    begun = load_run_config(config.run)
    precision = begun.precision if config.precision == "auto" else config.precision
    model = config.model
    if model.d_halvings is None and model.d_widths == begun.model.d_widths:
        model = replace(model, d_halvings=begun.model.d_halvings)
    return replace(config, precision=precision, model=model)


def read_identity(folder: Path) -> dict[str, Any]:
    """Return the run's id and that of its images. Raises DataError if RUN/run.json is damaged."""
    if found := small_files.read(run_mirror.Identity, Path(folder, "run.json"), run_mirror.RESTORE):
        return dict(found)
    raise DataError(f"{folder / 'run.json'} is not there: {run_mirror.RESTORE}")


def load_run_config(run: str | Path) -> RunConfig:
    """Return the resolved configuration of a run, where it is now, for reading: without `data.cache`.

    A run's folder may come from somebody else, and what only reads it makes and removes nothing at a place that it names.
    Raises ConfigError if `run` is not a run's folder.
    """
    path = Path(run, "config.yaml")
    if not path.is_file():
        raise ConfigError(f"{run} is not the folder of a run: it has no config.yaml")
    config = _as_recorded(replace(_saved_config(Path(run)), run=str(run)))
    return replace(config, data=replace(config.data, cache=None))


def _as_recorded(config: RunConfig) -> RunConfig:
    """Return `config`; where an earlier version has kept relative places of the data, with the absolute ones of the journal."""
    data = config.data
    if all("://" in uri or Path(uri).is_absolute() for uri in [data.uri or "/", *(part.uri for part in data.mix.values())]):
        return config
    opened = [record.open for record, _ in journal.read(Path(config.run)) if isinstance(record, OpenRecord)]
    known = {row.name: row.uri for row in opened[-1].datasets} if opened else {}
    parts = {name: replace(part, uri=known.get(name, part.uri)) for name, part in data.mix.items()}
    name = data.uri.rstrip("/").rpartition("/")[2]
    return replace(config, data=replace(data, uri=known.get(name, data.uri), mix=parts))


def _saved_config(folder: Path) -> RunConfig:
    """Read RUN/config.yaml, as it was written. Raises DataError if it is empty or no YAML."""
    advice = "restore it from a copy (MLflow has one among the run's artifacts), or delete it: the next start writes it anew"
    tree = small_files.read_yaml(path := folder / "config.yaml", advice)
    with parsing(str(path), advice):
        config = build(tree)
        said = {key: value for key, value in asdict(config.model).items() if key in tree["model"]}
        return replace(config, model=from_saved(said))


def _changes(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    old, new = hidden(old), hidden(new)  # another password or signature is no other place
    changed = [key for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)]
    for key in changed:
        if key.startswith(_FIXED):
            raise ConfigError(
                f"{key}={new.get(key)} but this run began with {old.get(key)}: change it back or name another run="
            )
    return [f"{key}: {old.get(key)} -> {new.get(key)}" for key in changed if key != "run"]


def check_model(config: RunConfig, manifest: Manifest) -> None:
    """Raises ConfigError if the networks and the shards do not speak of the same images."""
    if manifest.samples < config.batch.global_batch:
        raise ConfigError(
            f"batch.global_batch={config.batch.global_batch} but the shards have {manifest.samples} images: set "
            f"batch.global_batch={1 << manifest.samples.bit_length() - 1} or name more images"
        )
    side, _, channels = config.data.shape(manifest)
    if config.data.resolution and side != (wanted := config.model.resolution):
        raise ConfigError(f"data.resolution={side} but model.resolution={wanted}: set data.resolution={wanted}")
    where = config.data.uri or ", ".join(part.uri for part in config.data.mix.values())
    for key, stored in (("num_classes", len(manifest.classes)), ("resolution", side), ("channels", channels)):
        if getattr(config.model, key) != stored:
            if key == "num_classes" and config.init:
                refuse_other_classes(config.init, networks_of(locate(config.init)).num_classes, stored, where)
            crop = f" or data.resolution={config.model.resolution} (to resample while reading)," if key == "resolution" else ""
            raise ConfigError(
                f"model.{key}={getattr(config.model, key)} but the shards at {where} have {stored}: "
                f"set model.{key}={stored}{crop} or name other shards"
            )


def refuse_other_classes(init: str, theirs: int, classes: int, where: str) -> None:
    """Raises ConfigError if the weights `init` have `theirs` classes and the shards at `where` another number of them."""
    if theirs == classes:
        return
    way = f"set init=null to train without them, or name shards of those {plural(theirs, 'class', 'classes')}"
    if classes < theirs:
        again = command("index", "URI" if ", " in where else where, "--out", "DIR", "--classes", "FILE")
        way = (
            f"if your classes are among them, index the shards with all {theirs} names, a line each in FILE: {again}, then "
            f"set model.num_classes={theirs} data.uri=DIR (fakes are then drawn of all {theirs}); else set init=null"
        )
    raise ConfigError(
        f"init={init} has {plural(theirs, 'class', 'classes')}, the shards at {where} have {classes}, and weights cannot be "
        f"carried over to other classes: {way}"
    )


def locate(source: str, images: int | None = None) -> Checkpoint:
    """The newest intact checkpoint of `source`, or that at `images`: a run's folder, a folder of checkpoints, or a checkpoint.

    The latter two may be any URI. Raises ConfigError if there is none, DataError if the one asked for is damaged.
    """
    config = load_run_config(source) if Path(source, "config.yaml").is_file() else None
    if checkpoints.FOLDER.fullmatch(source.rstrip("/").rpartition("/")[2]) and storage.exists(
        storage.join(source, checkpoints.COMMIT)
    ):
        return checkpoints.load(source.rstrip("/")).verify()
    uri = kept_checkpoints(config) if config else source
    if images is None:
        found = checkpoints.newest(uri)
    elif found := next((c for c in checkpoints.committed(uri) if c.images == images), None):
        found = found.verify()
    if found is None:
        have = ", ".join(str(c.images) for c in checkpoints.committed(uri)) or "none"
        at = "" if images is None else f" at {images} images"
        if config or have != "none":
            raise ConfigError(f"{source} has no checkpoint{at}; it has: {have}")
        raise ConfigError(f"no model {source}: name a run's folder, or a folder or URI of checkpoints")
    return found


def write_status(folder: Path, status: RunState) -> bool:
    """Write RUN/status.json, and tell the launcher; return whether at least one of them has it."""
    told = tell_launcher(status)
    return _write_status(folder / "status.json", status) or told


def tell_launcher(status: RunState) -> bool:
    """Leave `status` where the launcher, if there is one, reads it; return whether it is there."""
    second = os.environ.get(variables.STATUS)
    return second is not None and _write_status(Path(second), status)


def _write_status(path: Path, status: RunState) -> bool:
    written = False
    with best_effort(path):
        # Whole: of several ranks that fail, one may be killed while it writes.
        storage.write_bytes(str(path), json.dumps(hidden(vars(status))).encode())
        written = True
    return written


def read_status(path: Path) -> RunState | None:
    """Return RUN/status.json; None if there is none, and, with a warning, if it is damaged."""
    return small_files.optional(RunState, path)
