"""`biggan register`: a checkpoint's generator becomes a version in the MLflow model registry."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from pipeline.generation.load import TrainedGenerator
    from pipeline.runs.evaluations import Evaluation

HELP = "register a run's generator in MLflow's model registry"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `biggan register`."""
    parser.add_argument("folder", metavar="RUN", type=Path, help="the run's folder")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--checkpoint", type=int, metavar="IMAGES", help="which checkpoint (default: the newest)")
    which.add_argument(
        "--best", metavar="METRIC", help="the checkpoint that RUN/evaluation knows as the best: 'FID[inception]', accuracy, ..."
    )
    parser.add_argument("--name", default="biggan", help="registered model (default: %(default)s)")
    parser.add_argument("--alias", default="challenger", help="alias to set on the version (default: %(default)s)")
    parser.add_argument(
        "--evaluation",
        type=Path,
        metavar="FILE",
        help="evaluation of these weights that decides in `biggan promote` (default: the one of the most samples in "
        "RUN/evaluation, unless the version has one of more)",
    )


def run(args: argparse.Namespace) -> None:
    """Export, register and print what to type next. The same weights are registered once, with all their evaluations."""
    from pipeline.generation.load import load_generator
    from pipeline.registry import versions
    from pipeline.runs import evaluations
    from pipeline.tracking.delivery import Delivery
    from pipeline.wording import command

    versions.check_names(args.name, args.alias)
    delivery = Delivery(args.folder)
    found = evaluations.of_run(args.folder, print)
    wanted = evaluations.best(found, args.best, print) if args.best else None
    trained = load_generator(args.folder, wanted.images if wanted else args.checkpoint)
    if wanted and wanted.weights_sha256 != trained.weights_sha256:
        raise ConfigError(
            f"--best {args.best!r}: {wanted.place} is about other weights than the checkpoint has (its latents were truncated, "
            "or the run began anew): evaluate that again, or type --checkpoint"
        )
    mine = _evaluations(args, trained, found)
    done = versions.register(delivery, trained, args.name, args.alias, mine, named=args.evaluation is not None)
    print(
        f"{'already registered' if done.known else 'registered'}: {done.name} version {done.version}, "
        f"alias {args.alias}, {trained.images:,} images, weights sha256 {trained.weights_sha256[:12]}"
    )
    for one in done.evaluations:
        figures = ", ".join(f"{name} {value:g}" for name, value in one.metrics.items())
        print(f"{'evaluation' if one is done.evaluations[0] else 'beside it'}: {figures} ({one.words()})")
    if mine and done.evaluations and mine[0].recipe_id != done.evaluations[0].recipe_id:
        print(f"the version keeps its evaluation of more samples, or as many: pass --evaluation FILE for {mine[0].place}")
    next_one = command("sample", f"models:/{done.name}@{args.alias}", "samples.png", "--tracking-uri", args.folder)
    print(f"next: {next_one.strip('`')}")


def _evaluations(args: argparse.Namespace, trained: "TrainedGenerator", found: "list[Evaluation]") -> "list[Evaluation]":
    """Return what is known about these weights. Raises ConfigError for a --evaluation that is not about them."""
    from pipeline.runs import evaluations

    if args.evaluation is None:
        return evaluations.of_weights(found, trained.weights_sha256)
    if not args.evaluation.is_file():
        raise ConfigError(f"--evaluation {args.evaluation} is not a file: name one that `biggan evaluate` has written")
    named = evaluations.parse(args.evaluation.read_text(), f"--evaluation {args.evaluation}")
    if named is None:
        raise ConfigError(f"--evaluation {args.evaluation} has no recipe to compare by: `biggan evaluate` writes it anew")
    if named.weights_sha256 != trained.weights_sha256:
        raise ConfigError(
            f"--evaluation {args.evaluation} is about other weights ({named.weights_sha256[:12]}, {named.images:,} images) "
            f"than these ({trained.weights_sha256[:12]}, {trained.images:,} images)"
        )
    return [named]
