"""`biggan stop`: a training saves after its current update and ends; the same `biggan train` goes on there."""

import argparse
import time
from pathlib import Path

from pipeline.errors import ConfigError

HELP = "let a training save and stop"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See `jobs.cli.Job`."""
    parser.add_argument("folder", metavar="RUN", type=Path, help="the run's folder")
    parser.add_argument("--wait", action="store_true", help="return when it has stopped")


def run(args: argparse.Namespace) -> None:
    """See `jobs.cli.Job`. Raises ConfigError if nobody trains there."""
    from pipeline import run, stop

    if not run.is_training(args.folder):
        raise ConfigError(f"{args.folder} is not being trained: there is nothing to stop")
    stop.request(args.folder)
    if not args.wait:
        print(f"{args.folder} saves and stops after its current update")
        return
    while run.is_training(args.folder):
        time.sleep(0.5)
    status = run.read_status(args.folder / "status.json")
    print(f"{args.folder}: {status.state if status else 'no status'}, {status.images if status else 0:,} images")
