"""Evaluation beside a training: each checkpoint in turn, as they appear."""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from pipeline.checkpoint.format import committed
from pipeline.errors import UserError
from pipeline.evaluation.prepare import find_splits
from pipeline.evaluation.request import EvaluationRequest
from pipeline.evaluation.request_checks import check
from pipeline.evaluation.sweep import carry_out
from pipeline.runs import evaluations
from pipeline.runs.evaluation_document import Document
from pipeline.runs.run_folder import load_run_config, read_status
from pipeline.runs.trusted_places import kept_checkpoints

Say = Callable[[str], None]

_FOLLOW_SECONDS = 10.0
"""Between two looks for a new checkpoint."""


def follow(run: Path, is_done: Callable[[int], bool], evaluate: Callable[[int], None], say: Say) -> None:
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


def evaluate_each(request: EvaluationRequest, file: str | None, say: Say) -> list[Document]:
    """Carry out the request for each checkpoint that has no document by this recipe yet, until the run has ended.

    Returns all documents, in the order in which they were made.
    """
    check(request, follow=True)
    # As a run's.
    asked = replace(request, truncation_method=request.truncation_method or "truncated-normal")
    splits, run, made = find_splits(request), Path(request.model), list[Document]()

    def is_done(images: int) -> bool:
        known = [document for document in evaluations.of_run(run, lambda line: None) if document.images == images]
        return all(any(asked.is_answered_by(one, cut, splits) for one in known) for cut in asked.truncations)

    def evaluate(images: int) -> None:
        made.extend(carry_out(replace(asked, checkpoint=images), file, say))

    follow(run, is_done, evaluate, say)
    return made
