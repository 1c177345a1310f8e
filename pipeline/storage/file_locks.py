"""Locks of files, on file systems that have them and on those that do not."""

import errno
import fcntl
from typing import IO, Any, Literal

_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


def lock_file(file: IO[Any], *, wait: bool = False) -> Literal["locked", "held", "unknown"]:
    """Lock an open file until it is closed, at once or after a `wait` for who holds it; "unknown": this disk has no locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return "held"
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        return "unknown"
    return "locked"
