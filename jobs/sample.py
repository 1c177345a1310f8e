"""`biggan sample`: a generator's images, as a sheet or as a set for other tools."""

import argparse
from typing import get_args

from pipeline.generation.sample_request import COLUMNS, ROWS, STEPS, TRUNCATIONS, Layout
from pipeline.wording import printable

HELP = "write samples: a sheet of classes, interpolations or truncations, or a set of images"

_METHODS = ("truncated-normal", "scaled-normal", "scaled-truncated-normal")
_AS_THEY_ARE = (
    *("layout", "classes", "seed", "truncation", "truncation_method", "truncations", "per_class", "steps", "count", "format"),
    *("batch", "standing", "checkpoint"),
)
"""Arguments that go on to `pipeline.generation.sample` under their own names."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `biggan sample`."""
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="a run's folder, a checkpoint or a folder of them (a path or URI; `biggan import` makes such), the folder of an "
        "exported model, models:/NAME@ALIAS or models:/NAME/VERSION, or http://HOST:PORT[/PATH] of `mlflow models serve` "
        "($BIGGAN_SERVER_TOKEN is sent as its token)",
    )
    parser.add_argument(
        "out",
        metavar="OUT",
        help="NAME.png or NAME.webp: a sheet; NAME.npz: --count images as arr_0 [n, H, W, C] uint8 and their labels as arr_1; "
        "FOLDER/: --count images as CLASS/NUMBER.png (CLASS is NUMBER-NAME where the name is no plain one), or shards",
    )
    parser.add_argument(
        "--layout",
        choices=get_args(Layout),
        default="classes",
        help="classes: as columns (in a set: in turn); grid: random classes; interpolation: from an image to another in each "
        "row; truncation: each row at another one (default: %(default)s)",
    )
    parser.add_argument("--classes", metavar="A,B", help=f"names or numbers (default: the first {COLUMNS}; grid and sets: all)")
    parser.add_argument("--seed", type=int, default=0, help="which latents (default: %(default)s)")
    parser.add_argument("--truncation", type=float, metavar="T", help="draw latents nearer to 0: better images, less variety")
    parser.add_argument(
        "--truncation-method",
        choices=_METHODS,
        help="within -T..T (the paper, StudioGAN), N(0, T^2) (BigGAN-PyTorch), or T times a normal within -2..2 (TF-Hub, "
        "Hugging Face). Default: the first; the last for weights from Hugging Face, whose statistics belong to it",
    )
    parser.add_argument("--truncations", metavar="T,T", help=f"rows of --layout truncation (default: {TRUNCATIONS})")
    parser.add_argument("--per-class", type=int, metavar="N", help=f"rows of a sheet (default: {ROWS})")
    parser.add_argument("--steps", type=int, metavar="N", help=f"columns of --layout interpolation (default: {STEPS})")
    parser.add_argument("--count", type=int, metavar="N", help="images of a set")
    parser.add_argument("--format", choices=("png", "webp", "shards"), help="what FOLDER/ holds (default: png)")
    parser.add_argument("--batch", type=int, default=64, metavar="N", help="images at once (default: %(default)s)")
    parser.add_argument(
        "--standing",
        type=int,
        metavar="N",
        help="take batch-norm statistics over N samples, even if some came with the weights",
    )
    parser.add_argument("--checkpoint", type=int, metavar="IMAGES", help="which checkpoint (default: the newest)")
    parser.add_argument(
        "--tracking-uri",
        metavar="URI|RUN",
        help="where models:/ is looked up: an MLflow URI, or a run's folder (default: $MLFLOW_TRACKING_URI)",
    )


def run(args: argparse.Namespace) -> None:
    """Draw the samples and write them."""
    from pipeline.generation import sample
    from pipeline.registry.registered_images import opener

    chosen = {name: getattr(args, name) for name in _AS_THEY_ARE}
    written = sample(args.model, args.out, open_registered=opener(args.tracking_uri), **chosen)
    print(f"{written.out}: {printable(written.what)}")
