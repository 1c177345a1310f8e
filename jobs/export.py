"""`biggan export`: a generator for use elsewhere, as an MLflow model, plain files or ONNX."""

import argparse
from collections.abc import Callable
from pathlib import Path

from pipeline.errors import ConfigError

HELP = "write a generator for use elsewhere: an MLflow model, safetensors with its config, or ONNX"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See `jobs.cli.Job`."""
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="a run's folder, a checkpoint or a folder of them (a path or URI), the folder of an exported model, or "
        "models:/NAME@ALIAS, models:/NAME/VERSION or models:/NAME/latest; the EMA generator is taken, with standing "
        "statistics of latents without truncation",
    )
    parser.add_argument("dst", metavar="DST", type=Path, help="a new folder; a new file NAME.onnx for ONNX")
    parser.add_argument(
        "--format",
        choices=("mlflow", "safetensors", "onnx"),
        help="mlflow: a folder that mlflow.pyfunc loads where none of this project is installed; safetensors: weights, "
        "config.json and golden samples; onnx: one file (extra `onnx`) (default: onnx if DST ends so, else mlflow)",
    )
    parser.add_argument("--checkpoint", type=int, metavar="IMAGES", help="which checkpoint (default: the newest)")
    parser.add_argument(
        "--standing",
        type=int,
        metavar="N",
        help="take batch-norm statistics over N samples, even if some came with the weights",
    )
    parser.add_argument("--tracking-uri", metavar="URI|RUN", help="as in `biggan sample`")


def run(args: argparse.Namespace) -> None:
    """Write it under another name, which DST becomes when it is whole."""
    onnx = args.dst.suffix == ".onnx"
    kind = args.format or ("onnx" if onnx else "mlflow")
    if (kind == "onnx") != onnx:
        raise ConfigError(f"DST {args.dst}: --format onnx needs a name that ends in .onnx, and only that")
    if args.dst.exists():
        raise ConfigError(f"DST {args.dst} is there already: name a new {'file' if onnx else 'folder'}")
    if args.standing is not None and args.standing < 2:
        raise ConfigError(f"--standing {args.standing}: must be at least 2")

    from pipeline.generation.export import save_files, save_model
    from pipeline.generation.export_onnx import save_onnx
    from pipeline.generation.load import TrainedGenerator, load_generator
    from pipeline.generation.sample_files import make_parent
    from pipeline.registry.model_files import local
    from pipeline.storage.temporary import replacing

    writers: dict[str, Callable[[TrainedGenerator, Path], None]]
    writers = {"mlflow": save_model, "safetensors": save_files, "onnx": save_onnx}
    with local(args.model, args.tracking_uri) as model:
        trained = load_generator(model, args.checkpoint, standing=args.standing)
    make_parent(args.dst)
    with replacing(args.dst) as half:
        writers[kind](trained, half)
        if args.dst.exists():  # somebody was faster
            raise ConfigError(f"DST {args.dst} is there by now: name a new {'file' if onnx else 'folder'}")
    print(f"{args.dst}: {kind}, {trained.images:,} images, weights sha256 {trained.weights_sha256[:12]}")
