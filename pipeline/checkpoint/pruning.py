"""Which checkpoints go when another one is saved: those of the same run that are not to be kept, and of nobody else.

A user's own folder may be named as a checkpoint's, and other runs' checkpoints may lie at the same place. What proves that a
folder is this run's is its COMMIT and the run's id in its state. Of a folder that a kill left without COMMIT, it is the name,
which has the number of the start that made it, and the files in it.
"""

import contextlib
from typing import Any

from pipeline import storage
from pipeline.checkpoint.commit_document import Files
from pipeline.checkpoint.format import (
    DAMAGED,
    SET_ASIDE,
    Checkpoint,
    Progress,
    Tensors,
    commit,
    folder_name,
    folders,
    load,
    mark,
    place_of,
)
from pipeline.checkpoint.rank_files import holds_any, remove, write_part, write_state
from pipeline.checkpoint.retention import CheckpointConfig, kept
from pipeline.engine.slices import Slice, whole
from pipeline.errors import ConfigError, DataError
from pipeline.storage import removal


def retain(uri: str, saved: Checkpoint, config: CheckpointConfig) -> list[str]:
    """Remove what `config` does not keep of the run that committed `saved`. Only intact checkpoints count; damaged ones stay.

    Returns the folders named as checkpoints that stay: links, and what other runs or users made, as ten digits may be a date.
    """
    older, others, unfinished, foreign = list[Checkpoint](), list[Checkpoint](), list[str](), list[str]()
    for name in folders(uri):
        folder = storage.join(uri, name)
        if removal.is_link(folder):
            foreign.append(folder)
            continue
        if any(storage.exists(storage.join(folder, marker)) for marker in (DAMAGED, SET_ASIDE)):
            continue
        with contextlib.suppress(DataError):
            try:
                found = load(folder)
            except storage.NotFoundError:
                (unfinished if _begun_by(folder, saved) else foreign).append(folder)
                continue
            except ConfigError:  # of a newer version, or not to be read
                foreign.append(folder)
                continue
            if _saved_by(found, saved):
                (older if found.images < saved.images else others).append(found)
            else:
                foreign.append(folder)
    keep = kept(config, saved, older)
    for found in (one for one in (*others, *older) if one.uri not in keep):
        # Training has gone back to before the newer ones: that can have been because they are damaged.
        if found in others and (fault := found.fault()):
            mark(found.uri, DAMAGED, fault)
        else:
            remove(found.uri, found.files)
    for folder in unfinished:
        # What a kill left behind while it was saved. One from past `saved` may be all that is left there of a checkpoint.
        if place_of(folder)[0] <= saved.images:
            remove(folder)
    return foreign


def _saved_by(one: Checkpoint, saved: Checkpoint) -> bool:
    """Whether `one` is of the run that committed `saved`. A newer one whose state is damaged is taken for such, and marked."""
    try:
        run = one.run()
    except (DataError, storage.NotFoundError):
        return one.images >= saved.images
    return run == saved.run() or (run is None and place_of(one.uri)[1] > 0)  # the first versions noted no run


def _begun_by(folder: str, saved: Checkpoint) -> bool:
    """Whether a folder without COMMIT is of a start up to that of `saved`, or of imports as `saved` is, by name and files."""
    attempt, last = place_of(folder)[1], place_of(saved.uri)[1]
    ours = attempt <= last and (attempt > 0) == (last > 0)
    return ours and (not storage.names(folder) or holds_any(folder))  # an empty one is what a removal that was killed leaves


def save(uri: str, progress: Progress, tensors: dict[str, Tensors], state: dict[str, Any], keep: int) -> Checkpoint:
    """Write and commit one checkpoint from one process, then remove all but it and the `keep` - 1 before it."""
    folder = storage.join(uri, folder_name(progress.images, 0))
    remove(folder)
    files: Files = {}
    for part, named in tensors.items():
        slices = [Slice(s.name, s.shape, 0, s.data.float().cpu().contiguous()) for s in whole(named)]
        files |= write_part(folder, part, 0, slices)
    files |= write_state(folder, progress, state)
    shapes = {part: {name: list(t.shape) for name, t in named.items()} for part, named in tensors.items()}
    saved = commit(folder, files, shapes)
    retain(uri, saved, CheckpointConfig(every=1, keep=keep))
    return saved
