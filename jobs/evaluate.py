"""`biggan evaluate`: FID, IS, KID, precision, recall and class accuracy of a generator's samples, against real images."""

import argparse
import difflib
import json
import os
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import ConfigError, UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from pipeline.evaluation import Judged, Real
    from pipeline.extractors import Extractor
    from pipeline.generators import TrainedGenerator
    from pipeline.peers import Peers
    from pipeline.splits import Split

HELP = "FID, IS, KID, precision, recall and class accuracy of samples against real images"

_METHODS = ("truncated-normal", "scaled-normal", "scaled-truncated-normal")
_FOLLOW_SECONDS = 10.0
"""Between two looks for a new checkpoint."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See `jobs.cli.Job`."""
    add = parser.add_argument
    add("model", metavar="MODEL", help="a run's folder, or a folder or URI of checkpoints; the EMA generator is evaluated")
    add("--checkpoint", metavar="IMAGES", help="which checkpoint (default: the newest)")
    add("--follow", action="store_true", help="evaluate every checkpoint of a run, as they appear, until the run has ended")
    add("--train", metavar="URI", help="shards that the judge learns from (default: the run's own)")
    add("--test", metavar="URI", help="real images held out (default: the split `test` beside the training split)")
    add("--reference", choices=("test", "train"), default="test", help="the split to compare with (default: %(default)s)")
    add("--crop", type=int, metavar="N", help="as data.crop (default: as the run did, or none)")
    add("--samples", type=int, default=10_000, metavar="N", help="classes in turn (default: %(default)s)")
    add("--real", type=int, metavar="N", help="real images of each split, at most (default: as many as samples)")
    add("--seed", type=int, default=0, help="which latents (default: %(default)s)")
    add(
        "--truncation",
        nargs="+",
        metavar="T",
        default=["none"],
        help="numbers or none: a document for each, and a curve if there are several (default: none)",
    )
    add("--truncation-method", choices=_METHODS, default=_METHODS[0], help="as of `biggan sample` (default: %(default)s)")
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
        help="in FID[NAME]: efflite0, inception, or what to call the judge, a classifier that learns from the training shards "
        "(default: the judge, as clf-HASH)",
    )
    add("--weights", metavar="URI", help="of --extractor inception: pt_inception-2015-12-05")
    add("--weights-sha256", metavar="HEX", help="of --weights: their hash")
    add(
        "--resizer",
        metavar="NAME-PIXELS",
        help="clean-N or tf1-bilinear-N (default: efflite0 clean-224, inception tf1-bilinear-299)",
    )
    add("--cache", metavar="URI", help="folder that keeps the judge; share it between runs (default: RUN/evaluation)")
    add("--processes", type=int, metavar="N", help="that share the work (default: one per GPU, or one)")
    add("--batch", type=int, default=256, metavar="N", help="images at once (default: %(default)s)")
    add("--json", metavar="OUT", help="also write the figures here (always: RUN/evaluation/IMAGES.json)")


def run(args: argparse.Namespace) -> None:
    """Judge every truncation; print and write the figures."""
    truncations = _check(args)
    import torch

    from pipeline.peers import together

    if args.follow:
        return _follow(args)
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
    from pipeline.evaluation import OPTIONAL
    from pipeline.extractors import PRETRAINED, parse_resizer

    if unknown := set(args.metrics.split(",") if args.metrics else ()) - set(OPTIONAL):
        raise ConfigError(f"--metrics {','.join(sorted(unknown))}: there are {', '.join(OPTIONAL)} (FID always)")
    name = args.extractor or ""
    if name not in PRETRAINED:
        if near := difflib.get_close_matches(name.lower(), PRETRAINED, 1, 0.7):
            raise ConfigError(f"--extractor {name}: did you mean {near[0]}? Call a judge something less like it")
        if name and not re.fullmatch(r"[\w.-]+", name):
            raise ConfigError(f"--extractor {name}: use letters, digits, _ - and . for the name of a judge")
    for flag, fits in (
        ("weights", name == "inception"),
        ("weights_sha256", name == "inception"),
        ("resizer", name in PRETRAINED),
    ):
        if getattr(args, flag) is not None and not fits:
            partner = "inception" if flag != "resizer" else " or ".join(PRETRAINED)
            raise ConfigError(f"--{flag.replace('_', '-')} goes only with --extractor {partner}")
    if args.resizer:
        parse_resizer(args.resizer)
    if args.follow and (args.checkpoint or not Path(args.model, "config.yaml").is_file()):
        raise ConfigError("--follow takes the folder of a run, and no --checkpoint: it evaluates them all")
    return _truncations(args)


def _truncations(args: argparse.Namespace) -> list[float | None]:
    from pipeline.generators import parse_truncation

    return [parse_truncation(text, "--truncation") for text in args.truncation]


def _leave_a_core() -> None:
    """To the threads that decode. OpenMP's threads wait for each other spinning: where one of two has to share its core,
    training the judge took six times as much CPU time, and longer than on one."""
    import torch

    torch.set_num_threads(min(torch.get_num_threads(), max(1, len(os.sched_getaffinity(0)) - 1)))


def _follow(args: argparse.Namespace) -> None:
    """Evaluate each checkpoint that has no document of this recipe's name yet, oldest first, until the run has ended."""
    from pipeline.checkpoint import committed
    from pipeline.run import checkpoint_uri, load_run_config, read_status

    uri, seen = checkpoint_uri(load_run_config(args.model)), set[int]()
    while True:
        status = read_status(Path(args.model, "status.json"))  # before the look: what it wrote last is then there
        new = sorted({c.images for c in committed(uri)} - seen)
        for images in new:
            seen.add(images)
            if all(Path(_own_place(args, images, truncation)).exists() for truncation in _truncations(args)):
                continue
            try:
                run(argparse.Namespace(**vars(args) | {"checkpoint": str(images), "follow": False}))
            except UserError:
                if images in {c.images for c in committed(uri)}:
                    raise
                _say(
                    f"the checkpoint at {images:,} images was removed before it could be evaluated: checkpoint.keep keeps more"
                )
        if not new and status and status.state != "running":
            _say(f"{args.model}: {status.state} at {status.images:,} images")
            return
        time.sleep(0 if new else _FOLLOW_SECONDS)


def _sweep(args: argparse.Namespace, truncations: list[float | None], peers: "Peers") -> None:
    from pipeline import storage
    from pipeline.evaluation_report import curve, table, track
    from pipeline.generators import find_exported
    from pipeline.run import load_run_config
    from pipeline.splits import check_same

    splits = _splits(args)
    trained = _load(args, truncations[0], args.checkpoint)
    check_same(trained, splits)
    _names(args, _sampled(args, trained), trained.classes)  # before an hour's work
    extractor, judge = _extractor(args, trained, splits)
    real = {name: _real(args, extractor, trained, split, peers) for name, split in splits.items()}
    documents: list[dict[str, Any]] = []
    for truncation in truncations:
        if documents:  # the same checkpoint again, even if a newer one has come
            trained = _load(args, truncation, None if find_exported(args.model) else str(trained.images))
        document = _document(args, truncation, trained, extractor, real, peers) | judge
        documents.append(document)
        print("\n".join(table(document)))
        for place in _places(args, document):
            _write(place, document)
        if Path(args.model, "config.yaml").is_file():
            track(Path(args.model), document, load_run_config(args.model).tracking.mode == "auto", _say)
    if args.json:
        _write(args.json, documents if len(documents) > 1 else documents[0])
    if len(documents) > 1:
        place = _own_place(args, trained.images, None).removesuffix(".json") + "-truncations.png"
        storage.write_bytes(place, curve(documents))
        _say(f"curve: {place}")


def _splits(args: argparse.Namespace) -> "dict[str, Split]":
    """`test`, and `train` where it is needed or known."""
    from pipeline.extractors import PRETRAINED
    from pipeline.index import load_manifest
    from pipeline.splits import Split, held_out, training_shards

    train = args.train
    if train is None and (args.extractor not in PRETRAINED or args.reference == "train" or args.test is None):
        train = training_shards(args.model)
    test = args.test or held_out(train)
    return {"test": Split(test, load_manifest(test))} | ({"train": Split(train, load_manifest(train))} if train else {})


def _load(args: argparse.Namespace, truncation: float | None, checkpoint: str | None) -> "TrainedGenerator":
    from pipeline.generators import load_generator

    images = int(checkpoint) if checkpoint else None
    return load_generator(args.model, images, truncation, args.truncation_method, args.standing)


def _extractor(
    args: argparse.Namespace, trained: "TrainedGenerator", splits: "dict[str, Split]"
) -> "tuple[Extractor, dict[str, Any]]":
    """The network that looks, and what the document says of a judge."""
    from pipeline.classifier import obtain_judge
    from pipeline.extractors import PRETRAINED, from_judge, pretrained
    from pipeline.splits import read_alike

    if args.extractor in PRETRAINED:
        return pretrained(args.extractor, trained.config.channels, args.resizer, args.weights, args.weights_sha256), {}
    train = splits["train"]
    data = read_alike(args.model, train.uri, args.crop, trained.config.resolution)
    expert = obtain_judge(data, train.manifest, _cache(args), _say)
    extractor = from_judge(args.extractor or f"clf-{expert.key[:8]}", expert.sha256, expert.classifier)
    made = {"file": expert.place, "key": expert.key, "seconds": expert.seconds, "train": train.uri, "test": splits["test"].uri}
    return extractor, {"judge": made}


def _cache(args: argparse.Namespace) -> str:
    from pipeline import storage

    return args.cache or storage.join(args.model, "evaluation")


def _real(
    args: argparse.Namespace, extractor: "Extractor", trained: "TrainedGenerator", split: "Split", peers: "Peers"
) -> "tuple[Real, Judged]":
    from pipeline.evaluation import Real, judge
    from pipeline.reference import obtain
    from pipeline.splits import read_alike

    data = read_alike(args.model, split.uri, args.crop, trained.config.resolution)
    images = Real(data, split.manifest, min(args.real or args.samples, split.manifest.samples))
    return images, obtain(extractor, images, _cache(args), lambda: judge(peers, extractor, images, args.batch), _say)


def _document(
    args: argparse.Namespace,
    truncation: float | None,
    trained: "TrainedGenerator",
    extractor: "Extractor",
    real: "dict[str, tuple[Real, Judged]]",
    peers: "Peers",
) -> dict[str, Any]:
    """Draw, look, count: all figures, ready for JSON."""
    from pipeline import evaluation_report
    from pipeline.evaluation import Samples, judge

    classes = len(trained.classes)
    sets = _sampled(args, trained) | {f"the real {args.reference} images": real[args.reference][1].labels}
    names, left_out = _names(args, sets, trained.classes)
    samples = Samples(trained.generator, classes, args.samples, args.seed, truncation, args.truncation_method)
    drawn = judge(peers, extractor, samples, args.batch)
    figures = evaluation_report.figures(extractor, args.reference, real, drawn, names, trained.classes, peers.device)
    recipe = evaluation_report.recipe(extractor, args.reference, real[args.reference][0], samples, trained, args.standing)
    about = {"run": str(args.model), "images": trained.images, "weights_sha256": trained.weights_sha256}
    about |= {"samples": args.samples, "seed": args.seed, "truncation": truncation}
    return about | figures | {"left_out": left_out} | recipe


def _sampled(args: argparse.Namespace, trained: "TrainedGenerator") -> "dict[str, Tensor]":
    """The labels of the samples."""
    import torch

    return {"the samples": torch.arange(args.samples) % len(trained.classes)}


def _names(args: argparse.Namespace, sets: "dict[str, Tensor]", classes: "Sequence[str]") -> tuple[list[str], dict[str, str]]:
    """The figures to compute besides FID from `sets` of images with these labels, and why others are left out.

    Raises ConfigError for one that was asked for.
    """
    from pipeline.evaluation import OPTIONAL, too_few

    asked = args.metrics.split(",") if args.metrics else list(OPTIONAL)
    left_out = {name: reason for name in asked if (reason := too_few(name, sets, classes))}
    if args.metrics and left_out:
        raise ConfigError(
            f"--metrics {next(iter(left_out))}: {next(iter(left_out.values()))}: type a larger --samples, or leave it out"
        )
    return [name for name in asked if name not in left_out], left_out


def _own_place(args: argparse.Namespace, images: int, truncation: float | None) -> str:
    """Where a document always goes; those of different extractors do not replace each other, those of judges do."""
    from pipeline import storage
    from pipeline.extractors import PRETRAINED

    name = f"-{args.extractor}" if args.extractor in PRETRAINED else ""
    cut = "" if truncation is None else f"-truncation-{truncation:g}"
    return storage.join(args.model, "evaluation", f"{images:010d}{name}{cut}.json")


def _places(args: argparse.Namespace, document: dict[str, Any]) -> list[str]:
    from pipeline import storage
    from pipeline.checkpoint import EVALUATION, committed
    from pipeline.run import checkpoint_uri, load_run_config

    places = [_own_place(args, document["images"], document["truncation"])]
    if document["truncation"] is None and Path(args.model, "config.yaml").is_file():
        # For `checkpoint.keep_best`; a training that goes on may have removed the checkpoint meanwhile.
        beside = [c.uri for c in committed(checkpoint_uri(load_run_config(args.model))) if c.images == document["images"]]
        places += [storage.join(uri, EVALUATION) for uri in beside[:1]]
    return places


def _write(place: str, document: Any) -> None:
    from pipeline import storage

    storage.write_bytes(place, (json.dumps(document, indent=1, ensure_ascii=False) + "\n").encode())
    _say(f"figures: {place}")


def _say(line: str) -> None:
    print(line, flush=True)
