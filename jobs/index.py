"""`biggan index URI`: index and manifest for WebDataset shards that another program wrote; `--verify` reads them again."""

import argparse
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pipeline.errors import ConfigError, DataError, UserError
from pipeline.wording import plural

if TYPE_CHECKING:
    from pipeline.packing.tar_samples import Progress

HELP = "index or verify shards that are there"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See `jobs.cli.Job`."""
    parser.add_argument("uri", metavar="URI", help="a folder of tars, or their names: s3://bucket/train-{000000..000127}.tar")
    parser.add_argument("--out", metavar="DST", help="where index and manifest go (default: beside the tars)")
    parser.add_argument(
        "--label",
        metavar="WHERE",
        help="cls (the default): the member .cls; json:PATH: a value in the member .json, as json:meta.label; name: the folder "
        "of the sample's key; name:REGEX: its first group, searched in the key; none: no classes",
    )
    parser.add_argument("--classes", metavar="FILE", help="names of the classes by label, one in each line (UTF-8)")
    parser.add_argument(
        "--renumber",
        action="store_true",
        help="number the labels that occur from 0, and keep the old numbers as names: for ids with gaps, or labels from 1",
    )
    parser.add_argument("--image", metavar="EXT", help="extension of the image, where a sample has several (as thumb.jpg)")
    parser.add_argument(
        "--on-error",
        choices=["stop", "skip"],
        default="stop",
        help="stop (the default): read everything, list what cannot be used, and write nothing; skip: leave out such samples "
        "and shards, and list them in index-report.json beside the manifest",
    )
    parser.add_argument("--skip-incomplete", action="store_true", help="leave out samples without image or label only")
    parser.add_argument("--verify", action="store_true", help="read all shards again and compare every checksum")
    parser.add_argument("--threads", type=int, default=4, metavar="N", help="shards that are read side by side (default 4)")


def run(args: argparse.Namespace) -> None:
    """See `jobs.cli.Job`."""
    if args.threads < 1:
        raise ConfigError(f"--threads {args.threads} must be at least 1: add --threads 4")
    if args.verify:
        return _verify(args)

    from pipeline.data.labels import empty_classes, read_names
    from pipeline.packing.destination import refuse_http
    from pipeline.packing.index_report import summary
    from pipeline.packing.indexer import index_shards
    from pipeline.packing.sample_rules import Rules
    from pipeline.packing.tar_listing import find_shards

    began = time.perf_counter()
    names = read_names(args.classes) if args.classes else None
    rules = Rules(
        label=args.label,
        image=args.image,
        classes=names,
        skip_incomplete=args.skip_incomplete,
        skip_faults=args.on_error == "skip",
        renumber=args.renumber,
    )
    if not args.out:
        refuse_http(args.uri)
    tars = find_shards(args.uri)
    destination = args.out or tars.folder
    try:
        with _progress() as progress:
            manifest, report = index_shards(tars, destination, rules, args.threads, progress)
    except UserError as error:
        for note in getattr(error, "__notes__", ()):
            print(note, file=sys.stderr)
        raise
    size = sum(shard.bytes for shard in manifest.shards) / 2**20
    form = f"{manifest.resolution} x {manifest.resolution}" if manifest.resolution else "of different sizes"
    print(
        f"{destination}: {plural(manifest.samples, 'image')}, {'grey' if manifest.channels == 1 else 'RGB'} {form}, "
        f"{plural(len(manifest.classes), 'class', 'classes')}, {plural(len(manifest.shards), 'shard')}, {size:,.1f} MiB, "
        f"{time.perf_counter() - began:.0f} s ({manifest.fingerprint})"
    )
    empty = empty_classes(manifest.classes, manifest.class_counts, names is None and not args.renumber)
    for line in (*summary(report, destination), *([empty] if empty else [])):
        print(f"  {line}")


def _verify(args: argparse.Namespace) -> None:
    from pipeline.packing.verify import verify

    began = time.perf_counter()
    with _progress() as progress:
        faults = verify(args.uri, args.threads, progress)
    if faults:
        print("\n".join(faults), file=sys.stderr)
        raise DataError(f"{args.uri} has {plural(len(faults), 'fault')}: restore the files named above, or make them again")
    print(f"{args.uri}: every checksum is right ({time.perf_counter() - began:.0f} s)")


@contextmanager
def _progress() -> "Iterator[Progress]":
    """A bar on a terminal; in a log a line every 10 seconds."""
    from tqdm import tqdm

    lock, done, said, began = threading.Lock(), [0, 0], time.monotonic(), time.monotonic()
    with tqdm(desc="reading", unit="B", unit_scale=True, disable=None) as bar:

        def update(samples: int, size: int) -> None:
            nonlocal said
            with lock:
                done[0] += samples
                done[1] += size
                bar.update(size)
                if bar.disable and time.monotonic() - said >= 10:
                    said = time.monotonic()
                    speed = done[1] / 1e6 / (said - began)
                    print(
                        f"reading: {done[1] / 1e6:,.0f} MB, {done[0]:,} samples of whole shards, {speed:,.0f} MB/s", flush=True
                    )

        yield update
