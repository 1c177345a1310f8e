"""Faults on demand, for tests: BIGGAN_FAIL_AT=commit:2 ends this process at the second pass, as a power cut would; and NaN."""

import itertools
import os
import signal
from collections import defaultdict
from collections.abc import Iterator

import torch

from pipeline import variables
from pipeline.engine.objective import Pair
from pipeline.engine.ranks import launched_as

NAMES = ("snapshot", "write", "upload", "written", "reported", "fence", "commit", "committed", "retain")
"""In the order in which a save passes them; `upload` is in the middle of a file."""

_passed: defaultdict[str, Iterator[int]] = defaultdict(lambda: itertools.count(1))


def fail_point(name: str) -> None:
    """Does nothing, unless the environment names this place."""
    wanted = os.environ.get(variables.FAIL_AT)
    if wanted is None:
        return
    place, count, *rank = wanted.split(":")
    if rank and int(rank[0]) != launched_as().rank:
        return
    if place == name and next(_passed[name]) == int(count):
        os.kill(os.getpid(), signal.SIGKILL)


class NaNInjection:
    """NaN on demand, for tests: BIGGAN_INJECT_NAN=STEP:RANK[:TIMES] spoils the real images of one rank in the updates from
    number STEP on, TIMES of them (1) over all attempts."""

    def __init__(self, rank: int):
        step, ranks, times = (*map(int, os.environ.get(variables.INJECT_NAN, "0:-1").split(":")), 1)[:3]
        self._step, self._left = step, times if rank == ranks else 0

    def spoil(self, reals: Iterator[Pair], step: int, each: int) -> Iterator[Pair]:
        """Return `reals`, `each` of an update from number `step` on, spoilt where that is asked for."""
        return self._spoilt(reals, step, each) if self._left else reals

    def _spoilt(self, reals: Iterator[Pair], step: int, each: int) -> Iterator[Pair]:
        struck = False
        for number, (x, y) in enumerate(reals):
            if number % each == 0:
                struck = self._strikes(step + number // each)
            yield (x * torch.nan if struck else x), y

    def _strikes(self, step: int) -> bool:
        """Say whether update `step` is spoilt on this rank. Call it once per update."""
        struck = step >= self._step and self._left > 0
        self._left -= struck
        return struck
