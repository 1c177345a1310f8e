"""The table of exit codes: what each says, and whether the same command again can help. Every other list comes from here.

`retry` is what a scheduler does after such an end:

done     nothing is left to do
never    it would end the same way: the job fails, until somebody has mended something
freely   nothing was wrong: it starts again, as often as it takes
counted  it starts again, a limited number of times
"""

from dataclasses import dataclass
from typing import Literal

Retry = Literal["done", "never", "freely", "counted"]


@dataclass(frozen=True)
class Code:
    """An exit code; `meaning` is for a list, after the number."""

    number: int
    meaning: str
    retry: Retry


DONE = Code(0, "done", "done")
STOPPED = Code(75, "stopped and saved (run the same command again)", "freely")
CONFIG = Code(78, "bad configuration or input", "never")
DATA = Code(65, "damaged data", "never")
NODES = Code(69, "bad nodes", "counted")
HUNG = Code(70, "hung", "counted")
STORAGE = Code(74, "storage failed", "counted")
TRAINING = Code(79, "training went bad", "never")
NOT_PROMOTED = Code(80, "not promoted", "never")

CODES = (DONE, STOPPED, CONFIG, DATA, NODES, HUNG, STORAGE, TRAINING, NOT_PROMOTED)
"""Those that `biggan` chooses. Between 64 and 78 the numbers are those of sysexits.h."""

CRASHED = Code(1, "a crash, with a traceback", "counted")
INTERRUPTED = Code(128 + 2, "interrupted: SIGINT", "counted")
PIPE_CLOSED = Code(128 + 13, "nobody reads the output any more: SIGPIPE", "counted")
TERMINATED = Code(128 + 15, "terminated before there was anything to save: SIGTERM", "freely")

ALL = (*CODES, CRASHED, INTERRUPTED, PIPE_CLOSED, TERMINATED)
"""With those that Python and every shell use."""


def numbers(*retry: Retry) -> tuple[int, ...]:
    """Return the numbers of all codes that are to be tried again so, in ascending order."""
    return tuple(sorted(code.number for code in ALL if code.retry in retry))


def listed() -> str:
    """Return CODES in one line: `0 done, 75 stopped and saved, ...`."""
    return ", ".join(f"{code.number} {code.meaning}" for code in CODES)
