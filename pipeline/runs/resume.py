"""Where a run resumes: at its newest intact checkpoint. A run that was saved never begins anew unless it is told to.

RUN/saved.json  images of the last checkpoint that was committed; 0: none yet
RUN/before-N/   what `--from-scratch` has put aside: journal, identity and status of the training before
"""

import contextlib
import json
import shlex
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from pydantic import Field
from typing_extensions import TypedDict

from pipeline import storage
from pipeline.checkpoint import format as checkpoints
from pipeline.checkpoint.format import DAMAGED, SET_ASIDE, Checkpoint
from pipeline.checkpoint.rank_files import holds_any
from pipeline.config import RunConfig
from pipeline.engine import agreement
from pipeline.engine.ranks import Ranks
from pipeline.errors import ConfigError, DataError, StorageError, TrainingError
from pipeline.fault_tolerance import run_mirror
from pipeline.fault_tolerance.recovery import History
from pipeline.runs.initial_weights import check_networks
from pipeline.runs.run_folder import load_run_config, read_identity, read_status
from pipeline.runs.trusted_places import checkpoint_uri
from pipeline.storage import removal, small_files
from pipeline.storage.best_effort import best_effort

_OF_A_TRAINING = ("run.json", "status.json", "saved.json", "health.json", "restarts.json", "journal.jsonl", "journal.offset")
"""What of a run's folder another training there would continue."""


class _Saved(TypedDict):
    images: Annotated[int, Field(ge=0, le=small_files.BIG)]


def find_checkpoint(config: RunConfig, history: History | None = None, uid: str = "") -> Checkpoint | None:
    """Return the newest intact checkpoint of this run from before its failures; None if it has never been saved.

    Says which damaged ones it passes over, and marks them. Raises DataError if the run was saved and none of its checkpoints
    is intact, ConfigError if what is there is another run's, or of other networks, TrainingError if there are only later ones.
    """
    history = history or History()
    uri, uid = checkpoint_uri(config), uid or read_identity(Path(config.run))["uid"]
    damaged: dict[str, str] = {}
    later: list[Checkpoint] = []

    def good(one: Checkpoint) -> bool:
        if not (takes := history.takes(one)):
            later.append(one)
        return takes

    found = checkpoints.newest(uri, good, damaged.__setitem__)
    if later and not found:
        raise TrainingError(
            f"{uri} has no checkpoint from before image {history.good_until:,}, where the run went bad: name a new run, or "
            f"delete {Path(config.run, 'health.json')} to go on from the newest all the same"
        )
    if not found:
        refuse_to_begin_anew(config, damaged)
        return None
    if found.state().get("run", uid) != uid:
        raise ConfigError(
            f"checkpoint.uri={uri} holds the checkpoints of another run than run={config.run}: name another place"
        )
    check_networks(found, config, f"checkpoint.uri={uri}")
    for folder, fault in damaged.items():
        print(f"passing over a damaged checkpoint, which stays: {folder}/{fault}", flush=True)
        with contextlib.suppress(StorageError, ConfigError):  # who saves there next says what is wrong with the store
            checkpoints.mark(folder, DAMAGED, fault)
    with contextlib.suppress(StorageError, ConfigError):
        removal.remove(storage.join(found.uri, DAMAGED), removal.has("time", "why"))  # somebody has restored it
    return found


def agree_on_checkpoint(config: RunConfig, ranks: Ranks, history: History, uid: str = "") -> Checkpoint | None:
    """Rank 0 looks for the newest good checkpoint; all take the same."""
    found = find_checkpoint(config, history, uid) if ranks.main else None
    choice = agreement.from_main(list[Checkpoint], [found] if found else [], ranks)
    return found or (choice[0] if choice else None)


def check_resumable(config: RunConfig) -> Checkpoint | None:
    """Return the newest checkpoint whose files have their sizes: that is cheap, and told before anything is written.

    Raises DataError as `find_checkpoint`, which reads them.
    """
    damaged: dict[str, str] = {}
    for found in checkpoints.committed(checkpoint_uri(config), damaged.__setitem__):
        if not (fault := found.fault(read=False)):
            return found
        damaged[found.uri] = fault
    refuse_to_begin_anew(config, damaged)
    return None


def refuse_to_begin_anew(config: RunConfig, damaged: Mapping[str, str]) -> None:
    """Raise DataError if the run was saved: `damaged` are folders with what is wrong with them, all that is left of it."""
    uri, images = checkpoint_uri(config), saved_images(Path(config.run))
    if not damaged and not images:
        return
    if damaged:
        faults = [f"{folder.rpartition('/')[2]}/{fault}" for folder, fault in damaged.items()]
        more = f" and {len(faults) - 4} more" if len(faults) > 4 else ""
        seen = f"none of its checkpoints at {uri} is intact ({', '.join(faults[:4])}{more}). Restore them from a copy"
    else:
        left = checkpoints.folders(uri)
        what = f"only {', '.join(left[:4])} without {checkpoints.COMMIT}" if left else "no checkpoint"
        seen = f"it was saved at image {images:,}, but {uri} has {what}. Restore it from a copy"
        with contextlib.suppress(ConfigError, DataError):
            if (before := checkpoint_uri(load_run_config(config.run))) != uri:
                key = shlex.quote(f"checkpoint.uri={before}")
                seen = f"it was saved at image {images:,} at {before}, and {uri} has no checkpoint: set {key}"
    raise DataError(f"run={config.run} cannot resume: {seen}, pass --from-scratch to train from image 0, or set run=NEW_RUN")


def saved_images(folder: Path) -> int:
    """Return the images of the last checkpoint that the run in `folder` has committed, 0 if it has none.

    Runs from before RUN/saved.json have them in their status.
    """
    if saved := small_files.read(_Saved, folder / "saved.json", run_mirror.RESTORE):
        return saved["images"]
    status = read_status(folder / "status.json")
    return status.images if status else 0


def note_saved(folder: Path, images: int) -> None:
    """Note that a checkpoint of `images` has been committed."""
    with best_effort(folder / "saved.json"):
        storage.write_bytes(str(folder / "saved.json"), json.dumps({"images": images, "time": time.time()}).encode())


def begin_anew(config: RunConfig) -> list[str]:
    """Let the next start of a run begin at image 0 if none of its checkpoints is intact; returns what was done, as lines.

    The checkpoints stay, marked, and the records of the training before go to RUN/before-N. The run gets a new identity.
    """
    folder, uri = Path(config.run), checkpoint_uri(config)
    damaged: dict[str, str] = {}
    if found := checkpoints.newest(uri, passed_over=damaged.__setitem__):
        return [f"--from-scratch is not needed: {found.uri} is intact, and training resumes there"]
    if not damaged and not saved_images(folder):
        return []
    for name in checkpoints.folders(uri):
        if (folder_uri := storage.join(uri, name)) in damaged or holds_any(folder_uri):
            checkpoints.mark(folder_uri, SET_ASIDE, damaged.get(folder_uri, "not committed"))
    aside = next(path for number in range(1, 1 << 31) if not (path := folder / f"before-{number}").exists())
    aside.mkdir()
    identity = read_identity(folder)
    for name in _OF_A_TRAINING:
        if (folder / name).exists():
            removal.move_aside(folder / name, aside)
    if config.checkpoint.uri:
        run_mirror.forget(config.checkpoint.uri, identity["uid"])
    stay = f", its damaged checkpoints stay at {uri}" if damaged else ""
    return [f"beginning anew: records of the training before are in {aside}{stay}"]
