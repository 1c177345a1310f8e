"""What the system has in memory of local files, for the price of a copy; the files stay open.

A decoding thread that waits for nothing needs no other thread to read for it, and bytes that were copied just now are still
in the processor's cache when they are checked and decoded. `will_need` has the system read ahead.
"""

import contextlib
import errno
import os
import threading
from collections import OrderedDict

_FILES = 256
"""That are kept open; a process may often have 1,024."""
_SPARE = 1 << 20
"""Bytes that a buffer is larger than what it is made for, at most, so that a slightly longer image needs no other."""


class _File:
    """An open file; closed when nobody has it any more, so not while another thread reads."""

    def __init__(self, path: str) -> None:
        self.descriptor = os.open(path, os.O_RDONLY)
        self.size = os.fstat(self.descriptor).st_size

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)


class PageCache:
    """Threads may share it. What it cannot do is left to somebody who can wait, and who says what is wrong."""

    def __init__(self) -> None:
        self._files: OrderedDict[str, _File] = OrderedDict()
        self._lock = threading.Lock()
        self._own = threading.local()
        self._able = hasattr(os, "RWF_NOWAIT")

    def will_need(self, path: str, start: int, stop: int) -> None:
        """Ask for bytes [start, stop) to be in memory soon."""
        with contextlib.suppress(OSError):
            file = self._file(path)  # held until the call is over, or it might be closed, and its number another file's
            os.posix_fadvise(file.descriptor, start, stop - start, os.POSIX_FADV_WILLNEED)

    def read(self, path: str, start: int, length: int) -> bytes | None:
        """`length` bytes from `start` on; None if they are not all in memory.

        Of a file that was replaced these may be the old one's: it is for a checksum to say whether they are right.
        """
        if not self._able:
            return None
        buffer: memoryview = getattr(self._own, "buffer", memoryview(b""))
        try:
            file = self._file(path)
            if start + length > file.size:
                return None
            if len(buffer) < length:
                buffer = self._own.buffer = memoryview(bytearray(length + min(length, _SPARE)))
            there = os.preadv(file.descriptor, [buffer[:length]], start, os.RWF_NOWAIT)
        except OSError as error:
            self._able = error.errno not in (errno.EOPNOTSUPP, errno.ENOSYS)  # not every file system can say it
            return None
        return bytes(buffer[:length]) if there == length else None

    def _file(self, path: str) -> _File:
        with self._lock:
            if (file := self._files.get(path)) is None:
                file = self._files[path] = _File(path)
            self._files.move_to_end(path)
            if len(self._files) > _FILES:
                self._files.popitem(last=False)
            return file
