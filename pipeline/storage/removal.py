"""The one place that deletes what others may look at. Nothing goes without a proof that we wrote it.

Users name the folders that we write to, and keep files of their own there. So neither a name alone nor "all but these" is a
proof. What counts is a name of our form together with what is in the file, or a folder that is proven ours. The rest stays.
What a function makes and takes away by itself is in `pipeline.storage.temporary`; no other module deletes, which a test checks.
"""

import contextlib
import json
import os
import re
import stat
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from pipeline import storage
from pipeline.errors import ConfigError, UserError

Proof = Callable[[bytes], bool]
"""Whether a file is ours, by its content."""

_MOST = 1 << 20
"""Bytes of the largest file whose content is looked at."""
_TEMPORARY = re.compile(r"\.(.+)\.[0-9a-f]{8}\.tmp")
"""The names that `storage` gives to files that it is writing."""


def remove(uri: str, is_ours: Proof) -> bool:
    """Remove the file or object `uri` if `is_ours` says so of its content; return whether nothing is there any more.

    Links and folders stay, and what is too large to be one of the small files that this is for.
    """
    path = storage.local_path(uri)
    if path is not None and os.path.lexists(path) and (path.is_symlink() or not path.is_file()):
        return False
    try:
        if storage.size(uri) > _MOST or not is_ours(storage.read_bytes(uri)):
            return False
    except storage.NotFoundError:
        return True
    storage.remove(uri)
    return True


def has(*keys: str, **values: object) -> Proof:
    """Return the proof that a file is a JSON object with these keys, and these values."""

    def proof(data: bytes) -> bool:
        try:
            document = json.loads(data)
        except (ValueError, RecursionError):
            return False
        known = isinstance(document, dict) and document.keys() >= {*keys, *values}
        return known and all(document[key] == value for key, value in values.items())

    return proof


def remove_files(folder: str, names: Iterable[str]) -> None:
    """Remove the files `names` of a folder whose own list, which the caller has read there, says that we wrote them.

    Raises ValueError for a name that leads out of the folder.
    """
    for name in names:
        if "/" in name or name in ("", ".", ".."):
            raise ValueError(f"{name!r} is not the name of a file in {folder}")
        storage.remove(storage.join(folder, name))


def remove_folder(folder: str, is_ours: Callable[[str], bool], may_be_ours: Callable[[str], bool]) -> None:
    """Remove the files of a folder that `is_ours` proves by name and content, then the folder if nothing is left.

    Unfinished files go where the name of the finished one `may_be_ours`. Files of others stay, and then the folder does.
    """
    if is_link(folder):
        return
    found = storage.names(folder)
    ours = [name for name in found if is_ours(name) or ((part := _TEMPORARY.fullmatch(name)) and may_be_ours(part[1]))]
    remove_files(folder, ours)
    if len(ours) == len(found):
        storage.remove_empty(folder)


def is_link(uri: str) -> bool:
    """Return whether a file or folder is a local link: what is behind it is elsewhere, and we make none."""
    path = storage.local_path(uri)
    return path is not None and path.is_symlink()


def remove_entry(path: Path, head: bytes) -> bool | None:
    """Remove the local file `path` if it begins with `head`; return whether it is gone, None if it is a file of others.

    A file that may be read and not removed is not gone. Never follows a link.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return True  # another process was faster
    except OSError:
        return None
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode) or os.read(descriptor, len(head)) != head:
            return None
        os.unlink(path)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True


def remove_request(path: Path) -> None:
    """Remove the plain file RUN/STOP, whatever is in it: `stop.lasting` has looked at what is there."""
    with contextlib.suppress(OSError):
        if stat.S_ISREG(path.lstat().st_mode):
            path.unlink()


def move_aside(path: Path, folder: Path, name: str = "") -> None:
    """Move a file or folder into `folder`, as `name` if that is given. Raises ConfigError if that name is taken there."""
    target = folder / (name or path.name)
    if os.path.lexists(target):
        raise ConfigError(f"{target} is in the way: move it elsewhere")
    path.rename(target)


@contextlib.contextmanager
def trial(folder: str, prefix: str, *, may_stay: bool = False) -> Iterator[str]:
    """Yield an address in `folder` that nobody has. What is stored there inside is removed at the end.

    It `may_stay` where a store takes what it does not let go of; else this raises ConfigError or StorageError there.
    """
    place = storage.join(folder, f"{prefix}{uuid.uuid4().hex[:8]}.tmp")
    try:
        yield place
    finally:
        with contextlib.suppress(UserError) if may_stay else contextlib.nullcontext():
            storage.remove(place)
