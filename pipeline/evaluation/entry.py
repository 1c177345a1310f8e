"""What `biggan evaluate` and a notebook call. Importing it costs nothing: torch waits for the call."""

from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from model.latents import Truncation
    from pipeline.runs.evaluation_document import Document

Say = Callable[[str], None]


def _nothing(line: str) -> None:
    """Say nothing."""


def evaluate(
    model: str | Path,
    *,
    checkpoint: int | None = None,
    train: str | None = None,
    test: str | None = None,
    reference: str = "test",
    crop: int | None = None,
    samples: int = 10_000,
    real: int | None = None,
    seed: int = 0,
    truncations: "Sequence[float | None]" = (None,),
    truncation_method: "Truncation | None" = None,
    standing: int | None = None,
    metrics: str | None = None,
    extractor: str | None = None,
    weights: str | None = None,
    weights_sha256: str | None = None,
    resizer: str | None = None,
    cache: str | None = None,
    processes: int | None = None,
    batch: int = 256,
    follow: bool = False,
    json: str | None = None,
    say: Say = _nothing,
) -> "list[Document]":
    """Judge samples of the EMA generator of `model`, a run's folder, checkpoint or exported model, against real images.

    `train` are the shards (URIs) that a judge learns from, `test` those held out, `reference` the one to compare with;
    by default they are the run's. Real images are cropped to `crop` pixels, by default as the run did. `samples` are drawn
    with the classes in turn, `seed` says which; `real` is the most images of the reference. Each of `truncations`, None for
    none, makes a document. Batch-norm statistics are taken over `standing` samples where none were recorded.

    `extractor` names the network that looks: one of `PRETRAINED`, with `weights`, `weights_sha256` and `resizer`, or what to
    call a judge, which `cache` keeps. `metrics` are names with commas between (`OPTIONAL`), by default all possible ones.
    `batch` images are looked at at once, on `processes` (default: one per GPU).

    With `follow`, `model` is a run, each checkpoint is judged that has no document like these, until the run has ended.

    Returns the documents, one for each truncation. They are also kept in RUN/evaluation and beside the checkpoint, tracked,
    and written to `json`, a path or URI. `say` is told the tables and where they are. Under a launcher only rank 0 returns any.

    Raises ConfigError for what makes no sense or is not there, DataError for damage.
    """
    from pipeline.evaluation.follow import evaluate_each
    from pipeline.evaluation.request import EvaluationRequest
    from pipeline.evaluation.sweep import carry_out

    asked = {name: value for name, value in locals().items() if name in {field.name for field in fields(EvaluationRequest)}}
    request = EvaluationRequest(**asked | {"model": str(model), "truncations": tuple(truncations)})
    return evaluate_each(request, json, say) if follow else carry_out(request, json, say)
