"""How a request is carried out: one checkpoint, at every truncation."""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch

from pipeline import storage
from pipeline.evaluation import prepare
from pipeline.evaluation import request as work
from pipeline.evaluation.document import curve, table
from pipeline.evaluation.keep import keep
from pipeline.evaluation.request import EvaluationRequest
from pipeline.evaluation.request_checks import check
from pipeline.evaluation.splits import check_same
from pipeline.evaluation.worker_pool import WorkerPool, together
from pipeline.generation.exported_model import find_exported
from pipeline.generation.load import TrainedGenerator, load_generator
from pipeline.runs import evaluations
from pipeline.runs.evaluation_document import Document

Say = Callable[[str], None]


def carry_out(request: EvaluationRequest, file: str | None, say: Say) -> list[Document]:
    """Judge every truncation; returns the documents on rank 0, which are written to `file` too, and none on the others."""
    check(request, follow=False)
    with _a_core_left(), together(request.processes or torch.cuda.device_count() or 1) as peers:
        if peers.rank:
            peers.serve()
            return []
        return _sweep(request, file, peers, say)


@contextmanager
def _a_core_left() -> Iterator[None]:
    """To the threads that decode. OpenMP's threads wait for each other spinning: where one of two has to share its core,
    training the judge took six times as much CPU time, and longer than on one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(min(threads, max(1, len(os.sched_getaffinity(0)) - 1)))
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _sweep(request: EvaluationRequest, file: str | None, peers: WorkerPool, say: Say) -> list[Document]:
    splits = prepare.find_splits(request)
    first, *more = request.truncations
    trained = _load(request, first, request.checkpoint)
    check_same(trained, splits)
    work.figures_to_compute(request, work.sampled(request, trained), trained.classes)  # refuses before an hour's work
    for truncation in request.truncations:
        evaluations.read(request.place(trained.images, truncation))  # likewise
    request = replace(request, truncation_method=request.truncation_method or trained.method)
    extractor, judge = prepare.find_extractor(request, trained, splits, say)
    real = {
        name: prepare.look_at_real(request, extractor, trained, name=name, split=split, peers=peers, say=say)
        for name, split in splits.items()
    }
    documents: list[Document] = []
    for truncation in request.truncations:
        if documents:  # the same checkpoint again, even if a newer one has come
            trained = _load(request, truncation, None if find_exported(request.model) else trained.images)
        document = work.make_document(request, truncation, trained, extractor=extractor, judge=judge, real=real, peers=peers)
        documents.append(document)
        say("\n".join(table(document)))
        keep(request, document, say)
    if file:
        shown = [document.as_json() for document in documents]
        text = json.dumps(shown if more else shown[0], indent=1, ensure_ascii=False)
        storage.write_bytes(file, f"{text}\n".encode())
        say(f"figures: {file}")
    if more:
        place = request.place(trained.images, None).removesuffix(".json") + "-truncations.png"
        storage.write_bytes(place, curve(documents))
        say(f"curve: {place}")
    return documents


def _load(request: EvaluationRequest, truncation: float | None, images: int | None) -> TrainedGenerator:
    return load_generator(request.model, images, truncation, request.truncation_method, request.standing)
