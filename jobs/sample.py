"""`biggan sample`: a grid of a generator's images, one column for each class."""

import argparse
import base64
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

HELP = "write a grid of samples as PNG, classes as columns"

_COLUMNS = 10


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `biggan sample`."""
    parser.add_argument("model", metavar="MODEL", help="a run's folder, models:/NAME@ALIAS or models:/NAME/VERSION")
    parser.add_argument("out", metavar="OUT.png", help="where the grid goes: a path or URI")
    parser.add_argument("--seed", type=int, default=0, help="which latents (default: %(default)s)")
    parser.add_argument("--truncation", type=float, metavar="T", help="draw latents within -T..T: better images, less variety")
    parser.add_argument("--per-class", type=int, default=8, metavar="N", help="rows (default: %(default)s)")
    parser.add_argument("--classes", metavar="A,B", help=f"names or numbers of the columns (default: the first {_COLUMNS})")
    parser.add_argument(
        "--tracking-uri",
        metavar="URI|RUN",
        help="where models:/ is looked up: an MLflow URI, or a run's folder (default: $MLFLOW_TRACKING_URI)",
    )


def run(args: argparse.Namespace) -> None:
    """Draw the samples and write the PNG."""
    for flag, value, least in (("--seed", args.seed, 0), ("--per-class", args.per_class, 1)):
        if value < least:
            raise ConfigError(f"{flag} {value}: must be at least {least}")
    if args.truncation is not None and not args.truncation > 0:
        raise ConfigError(f"--truncation {args.truncation}: must be above 0; leave it out for no truncation")
    if not args.out.lower().endswith(".png"):
        raise ConfigError(f"{args.out}: the grid is a PNG file, so its name must end in .png")

    classes, columns, images = (_from_registry if args.model.startswith("models:/") else _from_run)(args)

    from model.sampling import grid
    from pipeline import storage
    from pipeline.images import png

    storage.write_bytes(args.out, png(grid(images, len(columns)).numpy()))
    print(f"{args.out}: {args.per_class} x {len(columns)} images, columns {', '.join(classes[i] for i in columns)}")


def _from_run(args: argparse.Namespace) -> "tuple[Sequence[str], list[int], Tensor]":
    """Class names, columns and images uint8 [per_class * columns, C, r, r], row by row."""
    if not Path(args.model).is_dir():
        raise ConfigError(f"no model {args.model}: type a run's folder, models:/NAME@ALIAS or models:/NAME/VERSION")
    from model.sampling import generate
    from pipeline.generators import load_run_generator

    trained = load_run_generator(args.model)
    columns = choose(args.classes, trained.classes)
    images = generate(trained.generator, _labels(columns, args), seed=args.seed, truncation=args.truncation)
    return trained.classes, columns, images


def _from_registry(args: argparse.Namespace) -> "tuple[Sequence[str], list[int], Tensor]":
    """The same through the registered model's own code."""
    from pipeline import registry

    model: Any = registry.load(args.model, _store(args))
    import numpy as np
    import pandas as pd
    import torch
    from PIL import Image

    classes: Sequence[str] = model.unwrap_python_model().classes
    columns = choose(args.classes, classes)
    params = {"seed": args.seed} | ({} if args.truncation is None else {"truncation": args.truncation})
    answer = model.predict(pd.DataFrame({"class_id": _labels(columns, args).numpy()}), params)
    files = [Image.open(io.BytesIO(base64.b64decode(text))) for text in answer["png"]]
    pixels = torch.from_numpy(np.stack([np.atleast_3d(np.asarray(file)) for file in files]))
    return classes, columns, pixels.permute(0, 3, 1, 2)


def _store(args: argparse.Namespace) -> str:
    uri: str | None = args.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
    if not uri:
        raise ConfigError(
            f"{args.model}: say which MLflow has it, with --tracking-uri (a URI, or the folder of a run that is "
            "tracked there) or MLFLOW_TRACKING_URI"
        )
    if "://" in uri:
        return uri
    from pipeline.tracking import Delivery

    return Delivery(Path(uri)).uri


def _labels(columns: list[int], args: argparse.Namespace) -> "Tensor":
    import torch

    return torch.tensor(columns).repeat(args.per_class)


def choose(wanted: str | None, classes: Sequence[str]) -> list[int]:
    """Class numbers of `wanted`, names or numbers with commas between; the first ones if None. Raises ConfigError."""
    if wanted is None:
        return list(range(min(_COLUMNS, len(classes))))
    chosen = []
    for part in wanted.split(","):
        if part in classes:
            chosen.append(classes.index(part))
        elif part.isdecimal() and int(part) < len(classes):
            chosen.append(int(part))
        else:
            names = ", ".join(classes[:20]) + (", ..." if len(classes) > 20 else "")
            raise ConfigError(f"--classes {part!r}: the model has 0 to {len(classes) - 1}: {names}")
    return chosen
