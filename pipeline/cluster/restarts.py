"""Whether a job that has ended shall start again: `python -m pipeline.cluster.restarts RUN CODE`, for batch scripts.

Prints a verdict, an exit code and why: `again 75 stopped by SIGUSR1`. A run has a few starts without a new checkpoint: a crash
takes one, and so does a stop (75) that saved nothing new. A new checkpoint gives them all back. RUN/restarts.json keeps count.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field

from pipeline import exit_codes, storage
from pipeline.errors import UserError
from pipeline.redaction import guard
from pipeline.storage import small_files

FINAL = exit_codes.numbers("done", "never")
"""Done, or nothing that another start could mend."""

PERSON = "RUN/STOP"
"""The reason of a stop that a person has asked for, with `biggan stop` or by the file itself."""


@dataclass(frozen=True)
class Crashes:
    """How often a run has ended since it last came further."""

    images: Annotated[int, Field(ge=-1, le=small_files.BIG)] = -1
    """Of the newest checkpoint at the last end."""
    count: Annotated[int, Field(ge=0, le=small_files.BIG)] = 0

    def again(self, images: int) -> "Crashes":
        """Return the count after one more crash, with the newest checkpoint at `images`."""
        return Crashes(images, self.count + 1 if images <= self.images else 1)

    def stopped(self, images: int) -> "Crashes":
        """Return the count after a stop, which is no loss where it has saved something new."""
        return Crashes(images, 0) if images > max(0, self.images) else Crashes(images, self.count + 1)


@dataclass(frozen=True)
class Verdict:
    """What becomes of a job."""

    again: bool
    code: int
    why: str


def decide(code: int, reason: str, crashes: Crashes, limit: int) -> Verdict:
    """After a start that ended with `code`, for `reason` if it was stopped; `crashes` are with this start."""
    if code in FINAL:
        return Verdict(False, code, "done" if code == 0 else f"exit code {code} is not mended by another start")
    without = f"without a checkpoint past {max(0, crashes.images):,} images"
    if code == exit_codes.STOPPED.number:
        if reason == PERSON:
            return Verdict(False, code, "somebody asked for the stop")
        why = f"stopped by {reason or 'a signal'}"
        if crashes.count > limit:
            return Verdict(False, code, f"{why}: {crashes.count} starts {without}; give a start more time")
        return Verdict(True, code, why + f", start {crashes.count} of at most {limit} {without}" * (crashes.count > 0))
    if crashes.count > limit:
        return Verdict(False, code, f"crashed {crashes.count} times {without}")
    return Verdict(True, code, f"crash {crashes.count} of at most {limit} {without}")


def after(folder: Path, code: int, before: str, limit: int, reason: str = "") -> Verdict:
    """The verdict on a start in `folder` that ended with `code`, noted there; `before` is the `stamp` of its status before.

    `reason` is why the job's script has asked for a stop, if it has: workers that had not begun leave no status.

    srun ends the nodes that are slower than the first to leave, and then has a code of its own. So the run's status has the
    word, if this start has written one.
    """
    from pipeline.runs.run_folder import read_status

    status = read_status(folder / "status.json") if stamp(folder) != before else None
    if status and status.exit_code is not None:
        code = status.exit_code
    crashes = small_files.optional(Crashes, folder / "restarts.json") or Crashes()
    if code not in FINAL:
        newest = _newest(folder, crashes.images)
        crashes = crashes.stopped(newest) if code == exit_codes.STOPPED.number else crashes.again(newest)
        storage.write_bytes(str(folder / "restarts.json"), json.dumps(asdict(crashes)).encode())
    return decide(code, reason if reason == PERSON or not status else status.message, crashes, limit)


def stamp(folder: Path) -> str:
    """Which RUN/status.json is there, as `stat --format='%i %Y'` says it; empty if none is."""
    try:
        found = os.stat(folder / "status.json")
    except FileNotFoundError:
        return ""
    return f"{found.st_ino} {int(found.st_mtime)}"


def _newest(folder: Path, known: int) -> int:
    """Images of the newest checkpoint, wherever the run keeps them; 0 without one, `known` if their store is away."""
    from pipeline.checkpoint import format
    from pipeline.runs import run_folder, trusted_places

    if not (folder / "config.yaml").exists():
        return 0
    try:
        newest = next(format.committed(trusted_places.checkpoint_uri(run_folder.load_run_config(folder))), None)
    except UserError as error:
        print(f"biggan: warning: {error}", file=sys.stderr)
        return known
    return newest.images if newest else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the verdict."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.cluster.restarts", description="whether a job shall start again")
    parser.add_argument("run", metavar="RUN", type=Path, help="the run's folder")
    parser.add_argument("code", metavar="CODE", type=int, help="exit code of srun")
    parser.add_argument("--reason", default="", help="why the job's script has asked for a stop: SIGUSR1, SIGTERM, RUN/STOP")
    parser.add_argument("--before", default="", help="inode and seconds of RUN/status.json before this start")
    parser.add_argument("--crashes", type=int, default=3, help="without a new checkpoint, after which to give up (default 3)")
    args = parser.parse_args(arguments)
    verdict = after(args.run, args.code, args.before, args.crashes, args.reason)
    print("again" if verdict.again else "end", verdict.code, verdict.why)
    return 0


if __name__ == "__main__":
    guard()
    sys.exit(main())
