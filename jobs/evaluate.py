"""`biggan evaluate`: FID, IS, KID, precision, recall and class accuracy of a generator's samples, against real images."""

import argparse

from pipeline.errors import ConfigError
from pipeline.evaluation.extractors import PRETRAINED

HELP = "FID, IS, KID, precision, recall and class accuracy of samples against real images"

_METHODS = ("truncated-normal", "scaled-normal", "scaled-truncated-normal")
_AS_THEY_ARE = (
    *("train", "test", "reference", "crop", "samples", "real", "seed", "truncation_method", "standing", "metrics"),
    *("extractor", "weights", "weights_sha256", "resizer", "cache", "processes", "batch", "follow", "json"),
)
"""Arguments that go on to `pipeline.evaluation.evaluate` under their own names."""


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
    from pipeline.evaluation import evaluate
    from pipeline.generation.load import parse_truncation

    if args.checkpoint is not None and not args.checkpoint.isdecimal():
        raise ConfigError(f"--checkpoint {args.checkpoint}: must be a number of images, as in the folder's name")
    chosen = {name: getattr(args, name) for name in _AS_THEY_ARE}
    evaluate(
        args.model,
        checkpoint=int(args.checkpoint) if args.checkpoint else None,
        truncations=[parse_truncation(text, "--truncation") for text in args.truncation],
        say=lambda line: print(line, flush=True),
        **chosen,
    )
