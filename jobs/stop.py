"""`biggan stop`: a training saves after its current update and ends; the same `biggan train` goes on there."""

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import ConfigError
from pipeline.wording import printable

if TYPE_CHECKING:
    from pipeline.cluster.slurm import SlurmJob

HELP = "let a training save and stop"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See `jobs.cli.Command`."""
    parser.add_argument("folder", metavar="RUN", type=Path, help="the run's folder")
    parser.add_argument("--wait", action="store_true", help="return when it has stopped")


def run(args: argparse.Namespace) -> None:
    """See `jobs.cli.Command`. A job that still waits is taken from the queue. Raises ConfigError if nobody trains there."""
    from pipeline.cluster import slurm
    from pipeline.fault_tolerance import stop
    from pipeline.runs import run_folder
    from pipeline.storage import run_lock

    job = _job(args.folder)
    if job and job.state != "RUNNING":
        slurm.cancel(job.id)
        print(f"{args.folder}: Slurm {job}, has been taken from the queue; `biggan submit` goes on where it was")
    elif job:
        # Its script writes the file: again and again, in case that the workers are still starting, and after their end it
        # knows that a person has asked.
        slurm.tell(job.id, "USR2")
    elif run_lock.is_training(args.folder):
        stop.request(args.folder)
    else:
        raise ConfigError(f"{args.folder} is not being trained: there is nothing to stop")
    if not args.wait:
        if not job or job.state == "RUNNING":
            print(f"{args.folder} saves and stops after its current update")
        return
    while run_lock.is_training(args.folder) or _job(args.folder):
        time.sleep(0.5)
    status = run_folder.read_status(args.folder / "status.json")
    print(f"{args.folder}: {printable(status.state) if status else 'no status'}, {status.images if status else 0:,} images")


def _job(folder: Path) -> "SlurmJob | None":
    """The run's Slurm job, as far as that can be seen from here."""
    from pipeline.cluster import slurm, submission

    return submission.queued(folder) if slurm.is_here() else None
