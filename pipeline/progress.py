"""The progress of a long command: a bar on a terminal, plain lines in a log."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

from pipeline.wording import plural

LINE_SECONDS = 10.0
"""Between two lines in a log."""

Tell = Callable[[int], None]
"""Is told how many more units are done."""


def silent(more: int) -> None:
    """Show nothing."""


@contextmanager
def progress(what: str, total: int, unit: str = "image", resumes: bool = False, log: TextIO | None = None) -> Iterator[Tell]:
    """Yield a function that is told how many more of `total` units are done, and shows it.

    On a terminal it draws a bar on stderr. In a log it prints a line to `log` (default: stdout) every 10 seconds, and one at
    the end of work that took longer. With `resumes`, the first call says how many units an earlier command did: they do not
    count as time.
    """
    if sys.stderr.isatty():
        from tqdm import tqdm

        with tqdm(total=total, desc=what, unit=unit, unit_scale=True) as bar:
            yield bar.update
        return
    done, before, began, said = 0, None if resumes else 0, time.monotonic(), 0.0

    def update(more: int) -> None:
        nonlocal done, before, said
        done += more
        if before is None:
            before = more
            if more:
                print(f"{what}: continuing after {plural(more, unit)}", file=log, flush=True)
            return
        seconds = time.monotonic() - began
        if seconds - said >= LINE_SECONDS or (done == total and (said or resumes)):
            said = seconds
            rate = (done - before) / max(seconds, 1e-9)
            speed = f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"
            print(f"{what}: {done:,} of {plural(total, unit)}, {speed} {unit}s/s", file=log, flush=True)

    yield update
