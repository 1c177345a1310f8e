"""Evaluation beside a training: each checkpoint in turn, as they appear."""

import time
from collections.abc import Callable
from pathlib import Path

from pipeline.checkpoint.format import committed
from pipeline.errors import UserError
from pipeline.runs.run_folder import load_run_config, read_status
from pipeline.runs.trusted_places import kept_checkpoints

_FOLLOW_SECONDS = 10.0
"""Between two looks for a new checkpoint."""


def follow(run: Path, is_done: Callable[[int], bool], evaluate: Callable[[int], None], say: Callable[[str], None]) -> None:
    """Call `evaluate` with the images of each checkpoint that is not `is_done`, oldest first, until the run has ended."""
    uri, seen = kept_checkpoints(load_run_config(run)), set[int]()
    while True:
        status = read_status(run / "status.json")  # before the look: what it wrote last is then there
        new = sorted({found.images for found in committed(uri)} - seen)
        for images in new:
            seen.add(images)
            if is_done(images):
                continue
            try:
                evaluate(images)
            except UserError:
                if images in {found.images for found in committed(uri)}:
                    raise
                say(f"the checkpoint at {images:,} images was removed before it could be evaluated: checkpoint.keep keeps more")
        if not new and status and status.state != "running":
            say(f"{run}: {status.state} at {status.images:,} images")
            return
        time.sleep(0 if new else _FOLLOW_SECONDS)
