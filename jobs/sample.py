"""`biggan sample`: a generator's images, as a sheet or as a set for other tools."""

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

    from pipeline.generators import TrainedGenerator

HELP = "write samples: a sheet of classes, of truncations or of interpolations, or a set of images"

_COLUMNS = 10
_METHODS = ("truncated-normal", "scaled-normal", "scaled-truncated-normal")
_SHEETS = (".png", ".webp")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `biggan sample`."""
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="a run's folder, a folder or URI of checkpoints (as `biggan import` makes one), models:/NAME@ALIAS or "
        "models:/NAME/VERSION",
    )
    parser.add_argument(
        "out",
        metavar="OUT",
        help="NAME.png or NAME.webp: a sheet; NAME.npz: --count images (arr_0 [n, H, W, C] uint8, arr_1 their classes); "
        "FOLDER/: the same as FOLDER/CLASS/NUMBER.png. A path or URI",
    )
    parser.add_argument(
        "--layout",
        choices=("classes", "grid", "interpolation", "truncation"),
        default="classes",
        help="of a sheet: classes as columns; random classes; each row from one image to another; "
        "rows of --truncations (default: %(default)s)",
    )
    parser.add_argument("--seed", type=int, default=0, help="which latents (default: %(default)s)")
    parser.add_argument("--truncation", type=float, metavar="T", help="draw latents within -T..T: better images, less variety")
    parser.add_argument(
        "--truncation-method",
        choices=_METHODS,
        default=_METHODS[0],
        help="what T means: |z| <= T (the paper, StudioGAN), N(0, T^2) (BigGAN-PyTorch), or T times a normal within -2..2 "
        "(TF-Hub, Hugging Face) (default: %(default)s)",
    )
    parser.add_argument(
        "--truncations", metavar="T,T", default="0.1,0.3,0.5,0.8,1,1.5,none", help="rows of that layout (default: %(default)s)"
    )
    parser.add_argument("--per-class", type=int, default=8, metavar="N", help="rows (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=9, metavar="N", help="columns of an interpolation (default: %(default)s)")
    parser.add_argument("--count", type=int, metavar="N", help="images of a set, the chosen classes in turn")
    parser.add_argument(
        "--classes", metavar="A,B", help=f"names or numbers (default: the first {_COLUMNS} on a sheet, else all)"
    )
    parser.add_argument("--checkpoint", type=int, metavar="IMAGES", help="which checkpoint (default: the newest)")
    parser.add_argument(
        "--standing",
        action="store_true",
        help="compute batch-norm statistics for these latents where imported weights came with theirs",
    )
    parser.add_argument("--batch", type=int, default=64, metavar="N", help="images at once (default: %(default)s)")
    parser.add_argument(
        "--tracking-uri",
        metavar="URI|RUN",
        help="where models:/ is looked up: an MLflow URI, or a run's folder (default: $MLFLOW_TRACKING_URI)",
    )


def run(args: argparse.Namespace) -> None:
    """Draw the samples and write them."""
    _check(args)
    if args.out.lower().endswith(_SHEETS):
        if args.model.startswith("models:/"):
            classes, columns, images = _from_registry(args)
            _write_sheet(args, images, len(columns))
            print(f"{args.out}: {args.per_class} x {len(columns)} images, columns {', '.join(classes[i] for i in columns)}")
        else:
            print(_LAYOUTS[args.layout](args))
    else:
        _write_set(args)


def _check(args: argparse.Namespace) -> None:
    for flag, value, least in (
        ("--seed", args.seed, 0),
        ("--per-class", args.per_class, 1),
        ("--steps", args.steps, 2),
        ("--batch", args.batch, 1),
        ("--count", args.count, 1),
    ):
        if value is not None and value < least:
            raise ConfigError(f"{flag} {value}: must be at least {least}")
    if args.truncation is not None and not args.truncation > 0:
        raise ConfigError(f"--truncation {args.truncation}: must be above 0; leave it out for no truncation")
    sheet = args.out.lower().endswith(_SHEETS)
    if not sheet and not args.out.lower().endswith(".npz") and not args.out.endswith("/"):
        raise ConfigError(f"{args.out}: must end in .png or .webp (a sheet), .npz (a set) or / (a folder of images)")
    if sheet and args.count is not None:
        raise ConfigError(f"--count {args.count}: a sheet has --per-class rows; name NAME.npz or FOLDER/ for a set")
    if not sheet and args.count is None:
        raise ConfigError(f"--count is missing: how many images shall {args.out} hold?")
    if args.model.startswith("models:/") and (not sheet or args.layout != "classes" or args.truncation_method != _METHODS[0]):
        raise ConfigError(
            f"{args.model}: a registered model draws the layout classes, truncated-normal: name its run for others"
        )


def _load(args: argparse.Namespace, truncation: float | None) -> "TrainedGenerator":
    from pipeline.generators import load_generator

    return load_generator(args.model, args.checkpoint, truncation, args.truncation_method, args.standing)


def _classes_sheet(args: argparse.Namespace) -> str:
    from model.sampling import generate

    trained = _load(args, args.truncation)
    columns = choose(args.classes, trained.classes)
    options = {"seed": args.seed, "truncation": args.truncation, "method": args.truncation_method, "batch": args.batch}
    _write_sheet(args, generate(trained.generator, _labels(columns, args), **options), len(columns))
    return f"{args.out}: {args.per_class} x {len(columns)} images, columns {', '.join(trained.classes[i] for i in columns)}"


def _grid_sheet(args: argparse.Namespace) -> str:
    import torch

    from model.latents import Stream, random_labels
    from model.sampling import generate

    trained = _load(args, args.truncation)
    chosen = torch.tensor(choose(args.classes or ",".join(trained.classes), trained.classes))
    labels = chosen[random_labels(args.seed, Stream.SAMPLES, 0, args.per_class * _COLUMNS, len(chosen))]
    options = {"seed": args.seed, "truncation": args.truncation, "method": args.truncation_method, "batch": args.batch}
    _write_sheet(args, generate(trained.generator, labels, **options), _COLUMNS)
    return f"{args.out}: {args.per_class} x {_COLUMNS} images of random classes"


def _interpolation_sheet(args: argparse.Namespace) -> str:
    import torch

    from model.sampling import draw, walks

    trained = _load(args, args.truncation)
    columns = torch.tensor(choose(args.classes, trained.classes))
    labels = columns[torch.arange(2 * args.per_class) % len(columns)]
    options = {"seed": args.seed, "truncation": args.truncation, "method": args.truncation_method}
    z, weights = walks(trained.generator, labels, args.steps, **options)
    _write_sheet(args, draw(trained.generator, z, weights, args.batch), args.steps)
    return f"{args.out}: {args.per_class} rows of {args.steps} steps"


def _truncation_sheet(args: argparse.Namespace) -> str:
    import torch

    from model.sampling import generate

    rows = []
    for text in args.truncations.split(","):
        try:
            truncation = None if text == "none" else float(text)
        except ValueError:
            truncation = 0.0
        if truncation is not None and not truncation > 0:
            raise ConfigError(f"--truncations {text!r}: must be numbers above 0, or none, with commas between")
        rows.append(truncation)
    sheets = []
    for truncation in rows:  # each with its own statistics, and all with the same latents' quantiles
        trained = _load(args, truncation)
        columns = choose(args.classes, trained.classes)
        options = {"seed": args.seed, "truncation": truncation, "method": args.truncation_method, "batch": args.batch}
        sheets.append(generate(trained.generator, torch.tensor(columns), **options))
    _write_sheet(args, torch.cat(sheets), len(columns))
    return f"{args.out}: rows of truncation {args.truncations}, columns {', '.join(trained.classes[i] for i in columns)}"


_LAYOUTS = {
    "classes": _classes_sheet,
    "grid": _grid_sheet,
    "interpolation": _interpolation_sheet,
    "truncation": _truncation_sheet,
}


def _write_sheet(args: argparse.Namespace, images: "Tensor", columns: int) -> None:
    from model.sampling import grid
    from pipeline import storage
    from pipeline.images import png, webp

    encode = webp if args.out.lower().endswith(".webp") else png
    storage.write_bytes(args.out, encode(grid(images, columns).numpy()))


def _write_set(args: argparse.Namespace) -> None:
    """`--count` images in batches; a folder never holds more than one of them in memory."""
    import numpy as np
    import torch
    from tqdm import tqdm

    from model.sampling import generate
    from pipeline import storage
    from pipeline.images import png

    trained = _load(args, args.truncation)
    chosen = torch.tensor(choose(args.classes or ",".join(map(str, range(len(trained.classes)))), trained.classes))
    labels = chosen[torch.arange(args.count) % len(chosen)]
    options = {"seed": args.seed, "truncation": args.truncation, "method": args.truncation_method, "batch": args.batch}
    kept = []
    with tqdm(total=args.count, unit="img", disable=None) as bar:
        for start in range(0, args.count, args.batch):
            some = labels[start : start + args.batch]
            images = generate(trained.generator, some, start=start, **options).permute(0, 2, 3, 1).numpy()
            if args.out.endswith("/"):
                for i, (image, label) in enumerate(zip(images, some.tolist(), strict=True), start):
                    name = trained.classes[label].replace("/", "_")
                    storage.write_bytes(storage.join(args.out, name, f"{i:06d}.png"), png(image))
            else:
                kept.append(images)
            bar.update(len(some))
    if kept:
        file = io.BytesIO()
        np.savez(file, np.concatenate(kept), labels.numpy())
        storage.write_bytes(args.out, file.getvalue())
    print(f"{args.out}: {args.count:,} images of {len(chosen)} classes")


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
