"""`biggan shard SRC DST`: images to WebDataset shards with an index."""

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from pipeline.sources import Source

HELP = "pack images into WebDataset shards with an index"

_RESOLUTIONS = (8, 16, 32, 64, 128, 256, 512)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See `jobs.cli.Job`."""
    parser.add_argument(
        "src",
        metavar="SRC",
        help="a folder with one folder per class (or with train/ and test/ of such), a zip of one, IDX files or their "
        "folder, `fashion-mnist` (found or downloaded), or `fashion-mnist:PATH` (its four files or Debian's .deb)",
    )
    parser.add_argument(
        "dst",
        metavar="DST",
        help="where to: a path, s3://... or another URI; a source with splits goes to DST/train, ...",
    )
    parser.add_argument("--split", help="pack only this split, such as train or test")
    parser.add_argument(
        "--resolution", type=int, metavar="N", help="N x N pixels; default for IDX files: the next power of two"
    )
    parser.add_argument(
        "--fit",
        choices=("crop", "pad"),
        help="crop: centred square, resampled (default); pad: black borders, pixels untouched (default for IDX files)",
    )
    parser.add_argument("--shard-size", type=int, default=64, metavar="MB", help="size of a shard in MiB (default 64)")
    parser.add_argument("--overwrite", action="store_true", help="replace shards that are at DST")


def run(args: argparse.Namespace) -> int | None:
    """See `jobs.cli.Job`."""
    from pipeline import storage
    from pipeline.packing import Fit, PackConfig, pack, packed
    from pipeline.sources import open_source

    if args.shard_size < 1:
        raise ConfigError(f"--shard-size {args.shard_size}: at least 1 (MiB)")
    sources = open_source(args.src, print)
    if args.split is not None:
        known = [source.split for source in sources if source.split]
        sources = [source for source in sources if source.split == args.split]
        if not sources:
            raise ConfigError(f"--split {args.split}: {args.src} has {', '.join(known) or 'no splits'}")
    plans = []
    for source in sources:
        fit: Fit = args.fit or ("crop" if source.side is None else "pad")
        config = PackConfig(_resolution(args, source), fit, shard_bytes=args.shard_size << 20)
        uri = storage.join(args.dst, source.split) if source.split else args.dst
        done = None if args.overwrite else packed(source, uri, config)  # for all splits before any is written
        plans.append((source, uri, config, done))
    for source, uri, config, done in plans:
        if done:
            print(f"{uri}: already packed, {done.samples:,} images ({done.fingerprint})")
            continue
        with _progress(source.split or "images", len(source.labels)) as progress:
            manifest = pack(source, uri, config, progress)
        size = sum(shard.bytes for shard in manifest.shards) / 2**20
        kind = f"{'grey' if manifest.channels == 1 else 'RGB'} {manifest.resolution} x {manifest.resolution}"
        print(
            f"{uri}: {manifest.samples:,} images, {kind}, {len(manifest.classes)} classes, "
            f"{len(manifest.shards)} shards, {size:,.1f} MiB ({manifest.fingerprint})"
        )
    return None


def _resolution(args: argparse.Namespace, source: "Source") -> int:
    chosen: int | None = args.resolution
    if chosen is None and source.side is not None:
        chosen = next((n for n in _RESOLUTIONS if n >= source.side), None)
    if chosen is None:
        raise ConfigError(f"--resolution is missing: {args.src} has images of any size; try --resolution 64")
    if chosen not in _RESOLUTIONS:
        raise ConfigError(f"--resolution {chosen}: choose one of {', '.join(map(str, _RESOLUTIONS))}")
    return chosen


@contextmanager
def _progress(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal; in a log a line every 10 seconds."""
    if sys.stderr.isatty():
        from tqdm import tqdm

        with tqdm(total=total, desc=f"packing {what}", unit="image", unit_scale=True) as bar:
            yield bar.update
        return
    done, began, said = 0, time.monotonic(), 0.0

    def update(more: int) -> None:
        nonlocal done, said
        done += more
        seconds = time.monotonic() - began
        if seconds - said >= 10 or done == total:
            said = seconds
            print(f"packing {what}: {done:,} of {total:,} images, {done / seconds:,.0f} images/s", flush=True)

    yield update
