"""The folder of one `biggan train` on its node's own disk: what launcher and workers tell each other, whatever RUN's disk does.

It goes when the launcher ends. After a kill it stays until another start on this machine finds that its process is gone.
"""

import json
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pipeline.errors import UserError
from pipeline.liveness import machine, this_process, verdict
from pipeline.storage import removal

STATUS, PROGRESS, DEFAULTS, CONFIG = "status.json", "progress", "accelerate.json", "config.yaml"
_PREFIX, _OWNER = "biggan-launch-", "owner.json"
_FILES = {_OWNER, STATUS, PROGRESS, DEFAULTS, CONFIG, "STOP"}


@contextmanager
def launch_folder() -> Iterator[Path]:
    """Make a folder that only this user can read, for as long as this lasts; remove those of launchers that were killed."""
    for left in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with suppress(OSError, ValueError, KeyError, TypeError, AttributeError, UserError):
            _remove(left)
    with tempfile.TemporaryDirectory(prefix=_PREFIX) as place:
        Path(place, _OWNER).write_text(json.dumps(this_process()))
        yield Path(place)


def _remove(left: Path) -> None:
    """Remove the files of a launcher in `left`, and the folder, if it was this user's, on this machine, and is gone."""
    found = left.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        return
    owner = json.loads((left / _OWNER).read_text())
    if owner["machine"] != machine() or verdict(owner) != "gone":
        return
    for last in (False, True):  # without its owner's file the folder is nobody's
        names = _FILES if last else _FILES - {_OWNER}
        removal.remove_folder(str(left), names.__contains__, names.__contains__)
