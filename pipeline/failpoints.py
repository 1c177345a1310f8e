"""Named places where a test can end this process as a power cut would: BIGGAN_FAIL_AT=commit:2 kills at the second pass."""

import itertools
import os
import signal
from collections import defaultdict
from collections.abc import Iterator

VARIABLE = "BIGGAN_FAIL_AT"
"""Environment variable: NAME:COUNT, or NAME:COUNT:RANK for one rank only."""

NAMES = ("snapshot", "write", "upload", "written", "reported", "fence", "commit", "committed", "retain")
"""In the order in which a save passes them; `upload` is in the middle of a file."""

_passed: defaultdict[str, Iterator[int]] = defaultdict(lambda: itertools.count(1))


def fail_point(name: str) -> None:
    """Does nothing, unless the environment names this place."""
    wanted = os.environ.get(VARIABLE)
    if wanted is None:
        return
    place, count, *rank = wanted.split(":")
    if rank and rank[0] != os.environ.get("RANK", "0"):
        return
    if place == name and next(_passed[name]) == int(count):
        os.kill(os.getpid(), signal.SIGKILL)
