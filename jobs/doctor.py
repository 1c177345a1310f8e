"""`biggan doctor --data URI`: what bounds the reading of shards, and what to do about it."""

import argparse
import json
from dataclasses import asdict

from pipeline.errors import ConfigError

HELP = "measure what bounds the reading of shards"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See `jobs.cli.Job`."""
    parser.add_argument("--data", metavar="URI", required=True, help="the folder of a split: its manifest, indexes and tars")
    parser.add_argument("--seconds", type=float, default=20.0, metavar="N", help="how long to measure (default 20)")
    parser.add_argument("--resolution", type=int, metavar="N", help="as data.resolution: crop and resample while reading")
    parser.add_argument("--threads", type=int, default=2, metavar="N", help="as data.decode_threads (default 2)")
    parser.add_argument("--want", type=float, metavar="N", help="images per second that training takes, to compare with")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")


def run(args: argparse.Namespace) -> None:
    """See `jobs.cli.Job`."""
    for name in ("seconds", "resolution", "threads", "want"):
        if (value := getattr(args, name)) is not None and not value > 0:
            raise ConfigError(f"--{name} {value:g}: must be above 0")

    from pipeline.data_doctor import examine
    from pipeline.index import load_manifest
    from pipeline.stream import DataConfig

    config = DataConfig(args.data, resolution=args.resolution, decode_threads=args.threads)
    manifest = load_manifest(args.data)
    found = examine(config, manifest, args.seconds, args.want)
    if args.json:
        print(json.dumps(asdict(found) | {"bound": found.bound, "advice": found.advice}))
        return
    print(
        f"{args.data}: {manifest.samples:,} images of {found.image_bytes / 1e3:,.1f} kB\n"
        f"  store    {found.store:10,.0f} images/s   {found.store * found.image_bytes / 1e6:,.0f} MB/s; first byte after "
        f"{found.latency * 1e3:,.1f} ms, a run after {found.request * 1e3:,.1f} ms\n"
        f"  tar      {found.tar:10,.0f} images/s   checksums, on one thread\n"
        f"  decode   {found.decode:10,.0f} images/s   {found.threads} threads on {found.cores} cores; one thread alone "
        f"{found.decode_one:,.0f}\n"
        f"  stream   {found.whole:10,.0f} images/s   all together, as training reads\n"
        f"bound by {found.bound}: {found.advice}"
    )
