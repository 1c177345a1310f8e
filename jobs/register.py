"""`biggan register`: the newest checkpoint's generator becomes a version in the MLflow model registry."""

import argparse
from pathlib import Path

HELP = "register a run's generator in MLflow's model registry"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `biggan register`."""
    parser.add_argument("folder", metavar="RUN", type=Path, help="the run's folder; its newest checkpoint is taken")
    parser.add_argument("--name", default="biggan", help="registered model (default: %(default)s)")
    parser.add_argument("--alias", default="challenger", help="alias to set on the version (default: %(default)s)")


def run(args: argparse.Namespace) -> None:
    """Export, register and print what to type next. The same weights are registered once."""
    from pipeline import registry
    from pipeline.generators import load_generator
    from pipeline.tracking import Delivery

    registry.check_names(args.name, args.alias)
    delivery = Delivery(args.folder)
    trained = load_generator(args.folder)
    done = registry.register(delivery, trained, args.name, args.alias)
    print(
        f"{'already registered' if done.known else 'registered'}: {done.name} version {done.version}, "
        f"alias {args.alias}, {trained.images:,} images, weights sha256 {trained.weights_sha256[:12]}"
    )
    print(f"next: biggan sample models:/{done.name}@{args.alias} samples.png --tracking-uri {args.folder}")
