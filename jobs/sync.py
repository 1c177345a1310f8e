"""`biggan sync`: what the journals of runs hold goes to MLflow, and runs that were killed are set to KILLED there."""

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import ConfigError, DataError, StorageError, UserError
from pipeline.wording import printable

if TYPE_CHECKING:
    from pipeline.tracking.delivery import Delivery

HELP = "deliver runs to MLflow, during training or later"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See `jobs.cli.Job`."""
    parser.add_argument("folders", metavar="RUN", type=Path, nargs="+", help="a run's folder, or a copy of one")
    parser.add_argument("--tracking", metavar="URI", help="an MLflow other than the run's own: http://..., sqlite:////...")
    parser.add_argument(
        "--wait", type=float, default=30.0, metavar="SECONDS", help="how long to try if MLflow does not answer (default 30)"
    )
    parser.add_argument(
        "--moved",
        action="store_true",
        help="the run's folder was moved or copied: its MLflow store uses the artifacts beside it, not those of the original",
    )
    parser.add_argument(
        "--killed", action="store_true", help="these runs are dead, even if their processes' machines cannot be asked from here"
    )


def run(args: argparse.Namespace) -> int:
    """See `jobs.cli.Job`. Goes on to the next run after a failure; returns the first one's exit code."""
    if args.wait < 0:
        raise ConfigError(f"--wait {args.wait:g}: must not be negative")
    if args.tracking and "://" not in args.tracking:
        raise ConfigError(f"--tracking {args.tracking}: not a URI; type http://HOST:PORT, or sqlite:///FILE")
    code = 0
    away: set[str] = set()
    for folder in args.folders:
        try:
            _sync(folder, args, away)
        except UserError as error:
            print(f"biggan: error: {folder}: {printable(str(error))}", file=sys.stderr, flush=True)
            code = code or error.exit_code
    return code


def _sync(folder: Path, args: argparse.Namespace, away: set[str]) -> None:
    from pipeline.runs.reaper import reap
    from pipeline.storage import trusted_stores
    from pipeline.storage.run_lock import is_training
    from pipeline.tracking.delivery import Delivery
    from pipeline.tracking.moved_store import settle
    from pipeline.wording import hide_secrets

    delivery = Delivery(folder, args.tracking)
    trusted_stores.note("send", [delivery.uri])
    if args.moved:
        settle(delivery.uri, moved=True)
    if found := reap(folder, args.killed):
        print(f"{folder}: {found}", flush=True)
    if delivery.mode == "off" and not args.tracking:
        print(f"{folder}: left out, it was trained with tracking.mode=off; --tracking URI delivers it all the same")
        return
    run_id = _deliver(delivery, args.wait, away)
    print(
        f"{folder}: {delivery.rows:,} rows and {delivery.files:,} files sent; MLflow at {hide_secrets(delivery.uri)} has "
        f"{'all so far, training goes on' if is_training(folder) else 'all of it'} as run {run_id}",
        flush=True,
    )
    if delivery.refused:
        more = f" (and {len(delivery.refused) - 1} more)" if len(delivery.refused) > 1 else ""
        raise DataError(
            f"MLflow refuses {delivery.refused[0]}{more}: left out, all else has been delivered; journal.jsonl keeps it, "
            "and another name there and `rm journal.offset` send it again"
        )


def _deliver(delivery: "Delivery", wait: float, away: set[str]) -> str:
    """Deliver, trying for `wait` seconds; a server that was `away` a moment ago is not waited for again."""
    from pipeline.tracking.mlflow_errors import first_line, is_from_store
    from pipeline.wording import hide_secrets

    deadline = time.monotonic() + (0 if delivery.uri in away else wait)
    told = False
    while True:
        try:
            return delivery.deliver()
        except UserError:
            raise
        except Exception as error:
            if not is_from_store(error):
                raise
            where, left = f"MLflow at {hide_secrets(delivery.uri)}", deadline - time.monotonic()
            if left <= 0:
                away.add(delivery.uri)
                raise StorageError(
                    f"{where} does not take the run's records: {first_line(error)}. Nothing is lost: type the same again "
                    "when it is back, or name another with --tracking"
                ) from error
            if not told:
                print(f"{where}: {first_line(error)}; trying for another {left:.0f} s", file=sys.stderr, flush=True)
            told = True
            time.sleep(min(1.0, left))
