"""One policy for the files of a run's folder while it trains: what goes wrong with them is said once, and training goes on.

Status, journal, events, quarantine, traces and the like are worth less than the training. What must not be lost are
checkpoints: `pipeline.checkpoint.saver` looks after those, wherever they are, and ends a run when too much is at risk.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pipeline.errors import ConfigError, StorageError
from pipeline.wording import printable

LOSSES = (OSError, StorageError, ConfigError)
"""What a disk raises that is full, read-only, forbidden or gone, by itself and through `pipeline.storage`."""

_said: set[str] = set()


@contextmanager
def best_effort(path: Path) -> Iterator[None]:
    """Inside, `path`, a file of a run's folder, is written or read; where its disk refuses, go on after this.

    Keep it narrow: configuration that is wrong raises ConfigError, too.
    """
    try:
        yield
    except LOSSES as error:
        tell(path, error)


def tell(path: Path, error: Exception) -> None:
    """Say that `path` cannot be kept, the first time in this process, on the terminal: the run's log is on the same disk."""
    if path.name in _said:
        return
    _said.add(path.name)
    with suppress(OSError, ValueError):  # nobody reads it any more
        print(f"biggan: warning: {path} is not kept ({printable(str(error))}): training goes on without it", flush=True)
