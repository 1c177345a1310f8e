"""`biggan evaluate`: FID, IS, KID, precision, recall and class accuracy of a generator's samples, against real images."""

import argparse
import difflib
import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import ConfigError
from pipeline.evaluation.extractors import PRETRAINED

if TYPE_CHECKING:
    from pipeline.evaluation.request import EvaluationRequest
    from pipeline.evaluation.splits import Split
    from pipeline.evaluation.worker_pool import WorkerPool
    from pipeline.generation.load import TrainedGenerator
    from pipeline.runs.evaluation_document import Document

HELP = "FID, IS, KID, precision, recall and class accuracy of samples against real images"

_METHODS = ("truncated-normal", "scaled-normal", "scaled-truncated-normal")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See `jobs.cli.Command`."""
    add = parser.add_argument
    add("model", metavar="MODEL", help="a run's folder, or a folder or URI of checkpoints; the EMA generator is evaluated")
    add("--checkpoint", metavar="IMAGES", help="which checkpoint (default: the newest)")
    add("--follow", action="store_true", help="evaluate every checkpoint of a run, as they appear, until the run has ended")
    add("--train", metavar="URI", help="shards that the judge learns from (default: the run's own)")
    add("--test", metavar="URI", help="real images held out (default: the split `test` beside the training split)")
    add("--reference", choices=("test", "train"), default="test", help="the split to compare with (default: %(default)s)")
    add("--crop", type=int, metavar="N", help="as data.crop (default: as the run did, or none)")
    add("--samples", type=int, default=10_000, metavar="N", help="classes in turn (default: %(default)s)")
    add("--real", type=int, metavar="N", help="real images of the reference, at most (default: as many as samples)")
    add("--seed", type=int, default=0, help="which latents (default: %(default)s)")
    add(
        "--truncation",
        nargs="+",
        metavar="T",
        default=["none"],
        help="numbers or none: a document for each, and a curve if there are several (default: none)",
    )
    add("--truncation-method", choices=_METHODS, help="as of `biggan sample`, with its defaults")
    add(
        "--standing",
        type=int,
        metavar="N",
        help="take batch-norm statistics over N samples (default: those that came with imported weights, or over 2048)",
    )
    add(
        "--metrics",
        metavar="A,B",
        help="of is, kid, prdc, intra-fid, besides FID (default: all that there are enough images for)",
    )
    add(
        "--extractor",
        metavar="NAME",
        help=f"in FID[NAME]: {', '.join(PRETRAINED)}, or what to call the judge, a classifier that learns from the training "
        "shards (default: the judge, as clf-HASH)",
    )
    files = ", ".join(f"of --extractor {name}: {one.weights}" for name, one in PRETRAINED.items() if one.weights)
    add("--weights", metavar="URI", help=files)
    add("--weights-sha256", metavar="HEX", help="of --weights: their hash")
    add(
        "--resizer",
        metavar="NAME-PIXELS",
        help=f"clean-N or tf1-bilinear-N (default: {', '.join(f'{name} {one.resizer}' for name, one in PRETRAINED.items())})",
    )
    add("--cache", metavar="URI", help="folder that keeps the judge; share it between runs (default: RUN/evaluation)")
    add("--processes", type=int, metavar="N", help="that share the work (default: one per GPU, or one)")
    add("--batch", type=int, default=256, metavar="N", help="images at once (default: %(default)s)")
    add("--json", metavar="OUT", help="also write the figures here (always: RUN/evaluation/IMAGES*.json)")


def run(args: argparse.Namespace) -> None:
    """Judge every truncation; print and write the figures."""
    truncations = _check(args)
    import torch

    from pipeline.evaluation.worker_pool import together

    if args.follow:
        return _evaluate_and_follow(args)
    _leave_a_core()
    with together(args.processes or torch.cuda.device_count() or 1) as peers:
        if peers.rank:
            return peers.serve()
        return _sweep(args, truncations, peers)


def _check(args: argparse.Namespace) -> list[float | None]:
    """Raises ConfigError for numbers and names that mean nothing; returns the truncations."""
    for flag, least in (
        ("--samples", 2),
        ("--real", 2),
        ("--seed", 0),
        ("--crop", 1),
        ("--standing", 2),
        ("--processes", 1),
        ("--batch", 1),
    ):
        value = getattr(args, flag[2:])
        if value is not None and value < least:
            raise ConfigError(f"{flag} {value}: must be at least {least}")
    if args.checkpoint is not None and not args.checkpoint.isdecimal():
        raise ConfigError(f"--checkpoint {args.checkpoint}: must be a number of images, as in the folder's name")
    from pipeline.evaluation.measure import OPTIONAL
    from pipeline.evaluation.networks import parse_resizer

    if unknown := set(args.metrics.split(",") if args.metrics else ()) - set(OPTIONAL):
        raise ConfigError(f"--metrics {','.join(sorted(unknown))}: there are {', '.join(OPTIONAL)} (FID always)")
    name = args.extractor or ""
    if name not in PRETRAINED:
        if near := difflib.get_close_matches(name.lower(), PRETRAINED, 1, 0.7):
            raise ConfigError(f"--extractor {name}: did you mean {near[0]}? Call a judge something less like it")
        if name and not re.fullmatch(r"[\w.-]+", name):
            raise ConfigError(f"--extractor {name}: use letters, digits, _ - and . for the name of a judge")
    own_weights = [known for known, entry in PRETRAINED.items() if entry.weights]
    for flag, partners in (("weights", own_weights), ("weights_sha256", own_weights), ("resizer", list(PRETRAINED))):
        if getattr(args, flag) is not None and name not in partners:
            raise ConfigError(f"--{flag.replace('_', '-')} goes only with --extractor {' or '.join(partners)}")
    if args.resizer:
        parse_resizer(args.resizer)
    if args.follow and (args.checkpoint or not Path(args.model, "config.yaml").is_file()):
        raise ConfigError("--follow takes the folder of a run, and no --checkpoint: it evaluates them all")
    return _truncations(args)


def _truncations(args: argparse.Namespace) -> list[float | None]:
    from pipeline.generation.load import parse_truncation

    return [parse_truncation(text, "--truncation") for text in args.truncation]


def _leave_a_core() -> None:
    """To the threads that decode. OpenMP's threads wait for each other spinning: where one of two has to share its core,
    training the judge took six times as much CPU time, and longer than on one."""
    import torch

    torch.set_num_threads(min(torch.get_num_threads(), max(1, len(os.sched_getaffinity(0)) - 1)))


def _request(args: argparse.Namespace) -> "EvaluationRequest":
    from dataclasses import fields

    from pipeline.evaluation.request import EvaluationRequest

    return EvaluationRequest(**{field.name: getattr(args, field.name) for field in fields(EvaluationRequest)})


def _evaluate_and_follow(args: argparse.Namespace) -> None:
    """Evaluate each checkpoint that has no document by this recipe yet, until the run has ended."""
    from pipeline.evaluation.follow import follow
    from pipeline.runs import evaluations

    args.truncation_method = args.truncation_method or _METHODS[0]  # as a run's
    request, splits, run_dir = _request(args), _splits(args), Path(args.model)

    def is_done(images: int) -> bool:
        known = [document for document in evaluations.of_run(run_dir, lambda line: None) if document.images == images]
        return all(any(request.is_answered_by(one, cut, splits) for one in known) for cut in _truncations(args))

    def evaluate(images: int) -> None:
        run(argparse.Namespace(**vars(args) | {"checkpoint": str(images), "follow": False}))

    follow(run_dir, is_done, evaluate, _say)


def _sweep(args: argparse.Namespace, truncations: list[float | None], peers: "WorkerPool") -> None:
    from pipeline import storage
    from pipeline.evaluation import prepare
    from pipeline.evaluation import request as work
    from pipeline.evaluation.document import curve, table, track
    from pipeline.evaluation.splits import check_same
    from pipeline.generation.exported_model import find_exported
    from pipeline.runs import evaluations
    from pipeline.runs.evaluation_document import Document
    from pipeline.runs.run_folder import load_run_config

    splits = _splits(args)
    trained = _load(args, truncations[0], args.checkpoint)
    args.truncation_method = args.truncation_method or trained.method
    request = _request(args)
    check_same(trained, splits)
    work.figures_to_compute(request, work.sampled(request, trained), trained.classes)  # refuses before an hour's work
    for truncation in truncations:
        evaluations.read(request.place(trained.images, truncation))  # likewise
    extractor, judge = prepare.find_extractor(request, trained, splits, _say)
    real = {
        name: prepare.look_at_real(request, extractor, trained, name=name, split=split, peers=peers, say=_say)
        for name, split in splits.items()
    }
    documents: list[Document] = []
    for truncation in truncations:
        if documents:  # the same checkpoint again, even if a newer one has come
            trained = _load(args, truncation, None if find_exported(args.model) else str(trained.images))
        document = work.make_document(request, truncation, trained, extractor=extractor, judge=judge, real=real, peers=peers)
        documents.append(document)
        print("\n".join(table(document)))
        _keep(request, document)
        if Path(args.model, "config.yaml").is_file():
            track(Path(args.model), document, load_run_config(args.model).tracking.mode == "auto", _say)
    if args.json:
        shown = [document.as_json() for document in documents]
        text = json.dumps(shown if len(shown) > 1 else shown[0], indent=1, ensure_ascii=False)
        storage.write_bytes(args.json, f"{text}\n".encode())
        _say(f"figures: {args.json}")
    if len(documents) > 1:
        place = request.place(trained.images, None).removesuffix(".json") + "-truncations.png"
        storage.write_bytes(place, curve(documents))
        _say(f"curve: {place}")


def _splits(args: argparse.Namespace) -> "dict[str, Split]":
    """`test`, and `train` where it is needed or known."""
    from pipeline.data.manifest import load_manifest
    from pipeline.evaluation.splits import Split, held_out, training_shards

    train = args.train
    if train is None and (args.extractor not in PRETRAINED or args.reference == "train" or args.test is None):
        train = training_shards(args.model)
    test = args.test or held_out(train)
    return {"test": Split(test, load_manifest(test))} | ({"train": Split(train, load_manifest(train))} if train else {})


def _load(args: argparse.Namespace, truncation: float | None, checkpoint: str | None) -> "TrainedGenerator":
    from pipeline.generation.load import load_generator

    images = int(checkpoint) if checkpoint else None
    return load_generator(args.model, images, truncation, args.truncation_method, args.standing)


def _keep(request: "EvaluationRequest", document: "Document") -> None:
    """Write a document to the run's folder and, for `checkpoint.keep_best`, beside its checkpoint."""
    from pipeline import storage
    from pipeline.checkpoint.format import EVALUATION, committed
    from pipeline.runs import evaluations
    from pipeline.runs.run_folder import load_run_config
    from pipeline.runs.trusted_places import kept_checkpoints

    images, truncation = document.images, document.truncation
    _say(f"figures: {evaluations.keep(request.place(images, truncation), document, _say)}")
    if truncation is not None or not Path(request.model, "config.yaml").is_file():
        return
    # A training that continues may have removed the checkpoint meanwhile.
    there = [one.uri for one in committed(kept_checkpoints(load_run_config(request.model))) if one.images == images]
    for place in [storage.join(uri, EVALUATION) for uri in there[:1]]:
        if evaluations.offer(place, document):
            _say(f"figures: {place}")
        else:
            _say(f"unchanged: {place}, another evaluation of as many samples or more, which checkpoint.keep_best goes by")


def _say(line: str) -> None:
    print(line, flush=True)
