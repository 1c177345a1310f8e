"""A training that is handed to a scheduler: checked as far as it can be without workers, frozen, and known by its job.

RUN/submission/  config.yaml   resolved: what will be trained, whatever becomes of presets and files until then
                 code.json     which code has checked it
                 job.json      which scheduler has it, and as what
                 ...           what the scheduler was given
"""

import contextlib
import json
import re
import shlex
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated

from pydantic import Field

from pipeline import storage, variables
from pipeline.cluster import slurm
from pipeline.config import RunConfig, flatten, to_yaml
from pipeline.errors import ConfigError
from pipeline.redaction import hide_secrets, holds_value
from pipeline.runs import trusted_places
from pipeline.storage import run_lock, small_files
from pipeline.storage.addresses import is_web
from pipeline.storage.containment import same_store, store_key
from pipeline.storage.file_locks import lock_file

JobName = Annotated[str, Field(pattern=r"^\w[\w.+-]*$", max_length=253)]
"""A number of Slurm, or a name: an argument of the scheduler's commands, never a flag of them."""


@dataclass(frozen=True, kw_only=True)
class Submission:
    """The job of a run."""

    scheduler: str
    job: JobName
    nodes: Annotated[int, Field(ge=1, le=small_files.BIG)]
    log: str = ""
    """Where it writes."""
    then: dict[str, JobName] = field(default_factory=dict)
    """Jobs that wait for its end: evaluate, register."""
    submitted: Annotated[float, Field(ge=0, le=small_files.BIG)] = field(default_factory=time.time)
    """In seconds since the epoch."""


_WAYS = {
    "tracking": ("MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD", "a variable of its driver, such as PGPASSWORD"),
    "files": (f"{variables.HTTP_LOGINS} or ~/.netrc", "a variable of its store, such as AWS_SECRET_ACCESS_KEY"),
}
"""Where else than in an address of the web, or in another one, a secret may be."""


def folder(run: Path) -> Path:
    return run / "submission"


def check(config: RunConfig, nodes: int, processes: int) -> None:
    """Find every mistake that can be found without workers and without writing anything; `processes` are of each node.

    Raises ConfigError, DataError or StorageError, as `biggan train` does.
    """
    from pipeline.checkpoint import format
    from pipeline.data.dataset import load_data
    from pipeline.engine.batch import plan_batch
    from pipeline.runs import run_folder
    from pipeline.runs.initial_weights import initial_checkpoint

    plan_batch(config.batch, nodes * processes)
    run_folder.check_model(config, load_data(config.data))
    if next(format.committed(trusted_places.checkpoint_uri(config)), None) is None:
        initial_checkpoint(config)


def refuse_secrets(config: RunConfig) -> None:
    """Raises ConfigError if a value of the configuration, which is copied into the submission, has a password or key in it."""
    for key, value in flatten(config).items():
        if not isinstance(value, str) or not holds_value(value):
            continue
        plain = hide_secrets(value)
        plain = plain.removesuffix("?...") if is_web(plain) else re.sub(r"[?&][\w.%-]+=\.\.\.", "", plain)
        ways = _WAYS["tracking" if key == "tracking.uri" else "files"]
        raise ConfigError(
            f"{key} holds a password or key, and would be copied into what is submitted: set {key}={shlex.quote(plain)}, "
            f"with the secret in {ways[0] if is_web(plain) else ways[1]}"
        )


def carry(config: RunConfig) -> RunConfig:
    """Return `config` with what this user has named: the machines that train do not know it.

    `data.allow` gets the stores where the manifests say that their tars are. Raises as `load_data`.
    """
    from pipeline.data.dataset import load_data
    from pipeline.runs import trusted_places

    trusted_places.note_run(config)
    manifest, data = load_data(config.data), config.data
    places = [(part.uri, part.tars) for part in manifest.parts] or [(data.uri, manifest.tars or data.uri)]
    stores = sorted({store_key(tars) for uri, tars in places if not same_store(uri, tars)} - set(data.allow))
    return replace(config, data=replace(data, allow=[*data.allow, *stores]))


@contextlib.contextmanager
def submitted_alone(config: RunConfig) -> Iterator[Path]:
    """Make or check the run's folder, and hold its submission: of two that submit it at once the second is refused.

    Yields RUN/submission. Raises ConfigError if somebody trains or submits the run.
    """
    from pipeline.data.dataset import load_data
    from pipeline.runs import run_folder

    place = folder(Path(config.run))
    if run_lock.is_training(place.parent):
        raise ConfigError(f"run={config.run} is being trained: `biggan stop {config.run}` first, or name another run")
    run_folder.prepare(config, load_data(config.data))
    place.mkdir(exist_ok=True)
    (place.parent / "logs").mkdir(exist_ok=True)
    with open(place / "lock", "w") as file:
        if lock_file(file) == "held":
            raise ConfigError(f"run={config.run} is being submitted by somebody else at this moment")
        yield place


def freeze(place: Path, config: RunConfig, files: Mapping[str, str]) -> None:
    """Write what will be trained, by which code, and `files`, which the scheduler is given, to RUN/submission."""
    from pipeline.runs.lineage import code

    for name, text in {"config.yaml": to_yaml(config), "code.json": json.dumps(code()), **files}.items():
        # A site file may export what nobody else may read.
        storage.write_bytes(str(place / name), text.encode(errors="surrogateescape"), private=name == "site.sh")


def record(place: Path, submission: Submission) -> None:
    """Note which job has the run."""
    storage.write_bytes(str(place / "job.json"), json.dumps(asdict(submission)).encode())


def read(run: Path) -> Submission | None:
    """Return the last submission of a run; None if it has never been submitted. Raises DataError if job.json is damaged."""
    return small_files.read(Submission, folder(run) / "job.json", "restore it from a copy, or submit the run again")


def queued(run: Path) -> slurm.SlurmJob | None:
    """The Slurm job that trains a run or is going to; None if there is none. Raises SlurmError."""
    last = read(run)
    if last is None or last.scheduler != "slurm":
        return None
    job = slurm.find(last.job)
    # Another cluster may have a job of the same number.
    ours = job and Path(job.script).resolve() == (folder(run) / "train.sbatch").resolve()
    return job if job and job.queued and ours else None
