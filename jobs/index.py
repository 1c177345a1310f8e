"""`biggan index URI`: index and manifest for WebDataset shards that somebody else wrote; `--verify` reads them again."""

import argparse
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import ConfigError, DataError

if TYPE_CHECKING:
    from pipeline.indexing import Progress

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
    parser.add_argument("--classes", metavar="FILE", help="names of the classes by label, one in each line")
    parser.add_argument("--image", metavar="EXT", help="extension of the image, where a sample has several (as thumb.jpg)")
    parser.add_argument("--skip-incomplete", action="store_true", help="leave out samples without image or label")
    parser.add_argument("--verify", action="store_true", help="read all shards again and compare every checksum")
    parser.add_argument("--threads", type=int, default=4, metavar="N", help="shards that are read side by side (default 4)")


def run(args: argparse.Namespace) -> None:
    """See `jobs.cli.Job`."""
    if args.threads < 1:
        raise ConfigError(f"--threads {args.threads}: must be at least 1")

    from pipeline.addresses import is_web
    from pipeline.indexing import Rules, find_shards, index_shards
    from pipeline.verify import verify
    from pipeline.wording import hide_secrets

    began = time.perf_counter()
    if args.verify:
        with _progress() as progress:
            faults = verify(args.uri, args.threads, progress)
        if faults:
            print("\n".join(faults), file=sys.stderr)
            raise DataError(f"{args.uri}: {len(faults)} faults; restore the files named above, or make them again")
        print(f"{args.uri}: every checksum is right ({time.perf_counter() - began:.0f} s)")
        return
    rules = Rules(args.label, args.image, _names(args.classes), args.skip_incomplete)
    folder, names = find_shards(args.uri)
    if not args.out and is_web(folder):
        raise ConfigError(f"{hide_secrets(folder)} is read only, as all of HTTP: add --out DIR for the index")
    with _progress() as progress:
        manifest, skipped = index_shards(folder, names, args.out or folder, rules, args.threads, progress)
    size = sum(shard.bytes for shard in manifest.shards) / 2**20
    form = f"{manifest.resolution} x {manifest.resolution}" if manifest.resolution else "of different sizes"
    print(
        f"{args.out or folder}: {manifest.samples:,} images, {'grey' if manifest.channels == 1 else 'RGB'} {form}, "
        f"{len(manifest.classes)} classes, {len(manifest.shards)} shards, {size:,.1f} MiB, {time.perf_counter() - began:.0f} s "
        f"({manifest.fingerprint})" + (f"; {skipped:,} incomplete samples left out" if skipped else "")
    )


def _names(path: str | None) -> tuple[str, ...] | None:
    if path is None:
        return None
    try:
        names = tuple(Path(path).read_text().splitlines())
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--classes {path}: cannot read it ({error})") from None
    if len(set(names)) < len(names) or not all(names):
        raise ConfigError(f"--classes {path}: each line must be another name")
    return names


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
