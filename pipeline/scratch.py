"""A launcher's folder for what its workers need: its owner's alone, gone with it, or at the next start if it was killed."""

import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pipeline.locks import lock_file

FILES = ("config.yaml", "status.json", "accelerate.json")
"""All that is written there."""
_PREFIX, _LOCK, _MARK = "biggan-", "launcher.lock", "a launcher of biggan-pipeline\n"


@contextmanager
def scratch() -> Iterator[Path]:
    """Make the folder, of mode 0700, after removing those of launchers that were killed."""
    for left in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*/{_LOCK}"):
        with suppress(OSError):  # another start may be faster
            _remove_left(left)
    with tempfile.TemporaryDirectory(prefix=_PREFIX) as name, open(Path(name, "new"), "w") as held:
        lock_file(held)
        held.write(_MARK)
        held.flush()
        os.rename(held.name, Path(name, _LOCK))  # nobody sees it unlocked
        yield Path(name)


def _remove_left(lock: Path) -> None:
    """Remove the folder of `lock`, with the files of `FILES` and no others, if it is ours and its launcher has gone."""
    if lock.parent.stat().st_uid != os.getuid() or not stat.S_ISREG(lock.lstat().st_mode):
        return
    with open(lock, "r+") as file:
        if lock_file(file) != "locked" or file.read(100) != _MARK:
            return
        for name in (*FILES, _LOCK):
            lock.with_name(name).unlink(missing_ok=True)
        lock.parent.rmdir()
