"""Files and folders that a function makes under a name that nobody else has, and takes away again itself."""

import atexit
import contextlib
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(path: Path, *, new: bool = False) -> Iterator[Path]:
    """Yield a name beside `path` for a file or folder, which becomes `path` at the end; after a failure it is removed.

    A file takes the place of one that is there, a folder only that of an empty one. Raises FileExistsError if `path` must be
    `new` and a file is there.
    """
    half = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        yield half
        (os.link if new else os.replace)(half, path)
    finally:
        _discard(half)


def until_exit(prefix: str) -> Path:
    """Return a new folder that goes when this process ends."""
    folder = Path(tempfile.mkdtemp(prefix=prefix))
    atexit.register(_discard, folder)
    return folder


def _discard(made: Path) -> None:
    if made.is_dir() and not made.is_symlink():
        shutil.rmtree(made, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            made.unlink()
