"""`biggan sample`: a generator's images, as a sheet or as a set for other tools."""

import argparse
import base64
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import ConfigError
from pipeline.wording import printable

if TYPE_CHECKING:
    from torch import Tensor

    from model.latents import Truncation
    from pipeline.generation.load import TrainedGenerator

HELP = "write samples: a sheet of classes, interpolations or truncations, or a set of images"

_COLUMNS, _ROWS, _STEPS = 10, 8, 8
_TRUNCATIONS = "0.1,0.3,0.5,0.8,1,1.5,none"
_METHODS: "tuple[Truncation, ...]" = ("truncated-normal", "scaled-normal", "scaled-truncated-normal")
_SHEETS = (".png", ".webp")

Drawer = Callable[["Tensor"], "Iterator[Tensor]"]
"""Labels [n] -> images uint8 [m, C, r, r] in batches; image i is sample i of the seed."""


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
        choices=tuple(_LAYOUTS),
        default="classes",
        help="classes: as columns (in a set: in turn); grid: random classes; interpolation: from an image to another in each "
        "row; truncation: each row at another one (default: %(default)s)",
    )
    parser.add_argument(
        "--classes", metavar="A,B", help=f"names or numbers (default: the first {_COLUMNS}; grid and sets: all)"
    )
    parser.add_argument("--seed", type=int, default=0, help="which latents (default: %(default)s)")
    parser.add_argument("--truncation", type=float, metavar="T", help="draw latents nearer to 0: better images, less variety")
    parser.add_argument(
        "--truncation-method",
        choices=_METHODS,
        help="within -T..T (the paper, StudioGAN), N(0, T^2) (BigGAN-PyTorch), or T times a normal within -2..2 (TF-Hub, "
        "Hugging Face). Default: the first; the last for weights from Hugging Face, whose statistics belong to it",
    )
    parser.add_argument("--truncations", metavar="T,T", help=f"rows of --layout truncation (default: {_TRUNCATIONS})")
    parser.add_argument("--per-class", type=int, metavar="N", help=f"rows of a sheet (default: {_ROWS})")
    parser.add_argument("--steps", type=int, metavar="N", help=f"columns of --layout interpolation (default: {_STEPS})")
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
    kind = _kind(args)
    _check_numbers(args)
    _check_flags(args, kind)
    if kind == "sheet":
        from pipeline.generation.sample_files import write_sheet

        images, columns, what = _LAYOUTS[args.layout](args)
        write_sheet(args.out, images, columns)
        print(f"{args.out}: {printable(what)}")
    else:
        _write_set(args, kind)


def _kind(args: argparse.Namespace) -> str:
    """sheet, npz, folder or shards."""
    if args.out.lower().endswith(_SHEETS):
        return "sheet"
    if args.out.lower().endswith(".npz"):
        if "://" in args.out:
            raise ConfigError(f"OUT {args.out}: an .npz is written on this machine's disk; copy it from there")
        return "npz"
    if args.format == "shards":
        return "shards"
    if args.out.endswith("/") or Path(args.out).is_dir():
        return "folder"
    raise ConfigError(f"OUT {args.out}: must end in .png or .webp (a sheet), .npz (a set) or / (a folder of images)")


def _check_numbers(args: argparse.Namespace) -> None:
    for flag, value, least in (
        ("--seed", args.seed, 0),
        ("--per-class", args.per_class, 1),
        ("--steps", args.steps, 2),
        ("--count", args.count, 1),
        ("--batch", args.batch, 1),
        ("--standing", args.standing, 2),
    ):
        if value is not None and value < least:
            raise ConfigError(f"{flag} {value}: must be at least {least}")
    if args.truncation is not None and not 0 < args.truncation < float("inf"):
        raise ConfigError(f"--truncation {args.truncation}: must be above 0; leave it out for no truncation")


def _check_flags(args: argparse.Namespace, kind: str) -> None:
    """Raises ConfigError for a flag that would not do anything, and for one that is missing."""
    sheet, ours = kind == "sheet", _is_ours(args)
    local = "a run's folder, a checkpoint or an exported model's folder"
    for flag, fits, partner in (
        ("--count", not sheet, "a set: let OUT end in .npz or /"),
        ("--format", kind in ("folder", "shards"), "a folder: let OUT end in /"),
        ("--per-class", sheet and args.layout != "truncation", "a sheet of another layout"),
        ("--steps", args.layout == "interpolation", "--layout interpolation"),
        ("--truncations", args.layout == "truncation", "--layout truncation"),
        ("--truncation", args.layout != "truncation", "another layout: type --truncations"),
        ("--truncation-method", ours, local),
        ("--standing", ours, local),
        ("--checkpoint", ours, local),
    ):
        value = getattr(args, flag[2:].replace("-", "_"))
        if value is not None and not fits:
            raise ConfigError(f"{flag} {value} goes only with {partner}")
    if args.layout in ("interpolation", "truncation") and not (sheet and ours):
        need = "a sheet: let OUT end in .png or .webp" if ours else local
        raise ConfigError(f"--layout {args.layout} goes only with {need}")
    if not sheet and args.count is None:
        raise ConfigError(f"--count is missing: say how many images {args.out} shall hold")
    if kind in ("folder", "shards"):
        from pipeline.storage.ownership import refuse_foreign

        refuse_foreign(f"OUT {args.out}", args.out, "name a new folder")


def _load(args: argparse.Namespace, truncation: float | None) -> "TrainedGenerator":
    from pipeline.generation.load import load_generator

    trained = load_generator(args.model, args.checkpoint, truncation, args.truncation_method, args.standing)
    args.truncation_method = args.truncation_method or trained.method
    return trained


def _is_ours(args: argparse.Namespace) -> bool:
    """Whether our own code draws, and not that of a registered model."""
    from pipeline.generation.model_address import serves

    return not args.model.startswith(("models:/", "runs:/")) and not serves(args.model)


def _model(args: argparse.Namespace) -> tuple[Sequence[str], Drawer]:
    """Class names, and what draws."""
    if not _is_ours(args):
        return _theirs(args)
    from model.sampling import generate

    trained = _load(args, args.truncation)

    def draw(labels: "Tensor") -> "Iterator[Tensor]":
        options = {"seed": args.seed, "truncation": args.truncation, "method": args.truncation_method, "batch": args.batch}
        for start in _batches(len(labels), args.batch):
            yield generate(trained.generator, labels[start : start + args.batch], start=start, **options)

    return trained.classes, draw


def _batches(count: int, batch: int, unit: str = "img") -> Iterator[int]:
    """Where each batch starts; a bar on a terminal if there are several."""
    from tqdm import tqdm

    with tqdm(total=count, unit=unit, disable=None if count > batch else True) as bar:
        for start in range(0, count, batch):
            yield start
            bar.update(min(batch, count - start))


def _theirs(args: argparse.Namespace) -> tuple[Sequence[str], Drawer]:
    """The same through a model's own code, here or in a server, whose statistics are those of untruncated latents."""
    import numpy as np
    import torch

    from pipeline.errors import DataError
    from pipeline.generation import client
    from pipeline.images.pillow import DRAWN, open_image
    from pipeline.registry import model_files, versions
    from pipeline.untrusted import parsing

    batch = min(args.batch, client.MOST_ROWS)
    params = {"seed": args.seed, "max_batch": batch} | ({} if args.truncation is None else {"truncation": args.truncation})
    if not versions.is_registered(args.model):
        server = client.Client(args.model)
        classes, ask = server.about["classes"], server.sample
    else:
        model: Any = model_files.load(args.model, versions.find_store(args.tracking_uri, args.model))[0]
        classes = model.unwrap_python_model().classes
        if "start" not in [param.name for param in model.metadata.get_params_schema().params]:
            batch = 1 << 62  # one request: in older models a sample belongs to its row

        def ask(class_ids: Sequence[int], **asked: Any) -> list[bytes]:
            import pandas as pd

            answer = model.predict(pd.DataFrame({"class_id": class_ids}, dtype="int64"), asked)
            return [base64.b64decode(text) for text in answer["png"]]

    def draw(labels: "Tensor") -> "Iterator[Tensor]":
        form: tuple[int, ...] = ()
        for first in _batches(len(labels), batch):
            pictures = ask(labels[first : first + batch].tolist(), **params, start=first)
            with parsing(f"{args.model}: a picture that it has drawn", "serve the model anew"):
                pixels = np.stack([np.atleast_3d(np.asarray(open_image(picture, DRAWN))) for picture in pictures])
            form = form or pixels.shape[1:]
            if pixels.dtype != np.uint8 or pixels.shape[1:] != form or form[0] != form[1] or form[2] not in (1, 3):
                raise DataError(f"{args.model} draws {pixels.dtype} images of {form} and {pixels.shape[1:]}: serve it anew")
            yield from torch.from_numpy(pixels).permute(0, 3, 1, 2).split(args.batch)

    return classes, draw


Sheet = tuple["Tensor", int, str]
"""Images uint8 [rows * columns, C, r, r], columns, and a line about them."""


def _class_sheet(args: argparse.Namespace) -> Sheet:
    import torch

    classes, draw = _model(args)
    rows, columns = args.per_class or _ROWS, choose(args.classes, classes)
    images = torch.cat(list(draw(torch.tensor(columns).repeat(rows))))
    return images, len(columns), f"{rows} x {len(columns)} images, columns {', '.join(classes[i] for i in columns)}"


def _random_sheet(args: argparse.Namespace) -> Sheet:
    import torch

    classes, draw = _model(args)
    rows, chosen = args.per_class or _ROWS, choose(args.classes, classes, len(classes))
    images = torch.cat(list(draw(_random(chosen, rows * _COLUMNS, args.seed))))
    return images, _COLUMNS, f"{rows} x {_COLUMNS} images of random classes"


def _interpolation_sheet(args: argparse.Namespace) -> Sheet:
    import torch

    from model.sampling import draw, walks

    trained = _load(args, args.truncation)
    rows, steps, chosen = args.per_class or _ROWS, args.steps or _STEPS, choose(args.classes, trained.classes)
    labels = torch.tensor(chosen)[torch.arange(2 * rows) % len(chosen)]
    options = {"seed": args.seed, "truncation": args.truncation, "method": args.truncation_method}
    z, weights = walks(trained.generator, labels, steps, **options)
    parts = (slice(start, start + args.batch) for start in _batches(len(z), args.batch))
    images = torch.cat([draw(trained.generator, z[part], weights[part]) for part in parts])
    return images, steps, f"{rows} x {steps} images, each row from one image to another"


def _truncation_sheet(args: argparse.Namespace) -> Sheet:
    import torch

    from model.sampling import generate
    from pipeline.generation.load import parse_truncation

    texts = (args.truncations or _TRUNCATIONS).split(",")
    rows = [parse_truncation(text, "--truncations") for text in texts]
    trained = _load(args, rows[0])
    columns, images = choose(args.classes, trained.classes), []
    for row in _batches(len(rows), 1, "row"):
        if row:
            trained.prepare(rows[row], args.truncation_method, args.standing)
        options = {"seed": args.seed, "truncation": rows[row], "method": args.truncation_method, "batch": args.batch}
        images.append(generate(trained.generator, torch.tensor(columns), **options))
    what = f"rows of truncation {', '.join(texts)}, columns {', '.join(trained.classes[i] for i in columns)}"
    return torch.cat(images), len(columns), what


_LAYOUTS = {
    "classes": _class_sheet,
    "grid": _random_sheet,
    "interpolation": _interpolation_sheet,
    "truncation": _truncation_sheet,
}


def _write_set(args: argparse.Namespace, kind: str) -> None:
    """`--count` images, never more than a batch of them in memory."""
    import torch

    from pipeline.generation import sample_files

    classes, draw = _model(args)
    chosen = choose(args.classes, classes, len(classes))
    in_turn = torch.tensor(chosen)[torch.arange(args.count) % len(chosen)]
    labels = _random(chosen, args.count, args.seed) if args.layout == "grid" else in_turn
    images = (part.permute(0, 2, 3, 1).contiguous().numpy() for part in draw(labels))
    batches = zip(images, (part.numpy() for part in labels.split(args.batch)), strict=True)
    if kind == "npz":
        sample_files.write_npz(Path(args.out), batches, args.count)
    elif kind == "folder":
        sample_files.write_folder(args.out, batches, classes, args.format or "png")
    else:
        sample_files.write_sample_shards(args.out, batches, classes)
    print(f"{args.out}: {args.count:,} images of {len(chosen)} classes")


def _random(chosen: list[int], count: int, seed: int) -> "Tensor":
    import torch

    from model.latents import RandomStream, random_labels

    return torch.tensor(chosen)[random_labels(seed, RandomStream.SAMPLES, 0, count, len(chosen))]


def choose(wanted: str | None, classes: Sequence[str], default: int = _COLUMNS) -> list[int]:
    """Class numbers of `wanted`, names or numbers with commas between; the first `default` if None. Raises ConfigError."""
    if wanted is None:
        return list(range(min(default, len(classes))))
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
