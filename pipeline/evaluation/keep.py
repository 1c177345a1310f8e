"""Where the documents of a run go: its folder, the checkpoint's, and MLflow."""

from collections.abc import Callable
from pathlib import Path

from pipeline import storage
from pipeline.checkpoint.format import EVALUATION, committed
from pipeline.evaluation.document import track
from pipeline.evaluation.request import EvaluationRequest
from pipeline.runs import evaluations
from pipeline.runs.evaluation_document import Document
from pipeline.runs.run_folder import load_run_config
from pipeline.runs.trusted_places import kept_checkpoints

Say = Callable[[str], None]


def keep(request: EvaluationRequest, document: Document, say: Say) -> None:
    """Write a document beside the model and, if that is a run, for `checkpoint.keep_best` and to its tracking."""
    say(f"figures: {evaluations.keep(request.place(document.images, document.truncation), document, say)}")
    run = Path(request.model)
    if not Path(run, "config.yaml").is_file():
        return
    if document.truncation is None:
        _offer(run, document, say)
    track(run, document, load_run_config(run).tracking.mode == "auto", say)


def _offer(run: Path, document: Document, say: Say) -> None:
    # A training that continues may have removed the checkpoint meanwhile.
    there = [one.uri for one in committed(kept_checkpoints(load_run_config(run))) if one.images == document.images]
    for place in [storage.join(uri, EVALUATION) for uri in there[:1]]:
        if evaluations.offer(place, document):
            say(f"figures: {place}")
        else:
            say(f"unchanged: {place}, another evaluation of as many samples or more, which checkpoint.keep_best goes by")
