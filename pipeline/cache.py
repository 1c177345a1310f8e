"""Bytes of shards on a local disk, shared by the processes of a node, within a size.

One file for each entry, its name a hash of the key, its content a crc32c and the bytes. An entry appears whole, by renaming;
what is found is checked, and thrown away if it is wrong. The least recently used go first.
"""

import contextlib
import errno
import hashlib
import os
import struct
import sys
import threading
import time
import uuid
from pathlib import Path

import google_crc32c

from pipeline.errors import ConfigError
from pipeline.locks import lock_file

_CRC = struct.Struct("<I")
_STALE = 600.0  # seconds after which an unfinished file is that of a dead process
_ROOM = 0.9  # of the limit, that is left filled when there is too much


class Cache:
    """At most `limit` bytes in `folder`, passed by no more than a 64th for each process.

    Raises ConfigError if nothing can be written there.
    """

    def __init__(self, folder: str, limit: int) -> None:
        self.folder, self.limit = Path(folder), limit
        self.hits = self.misses = 0
        self._since = limit  # bytes written since the folder was last looked through; at first it is
        self._full = False
        self._lock = threading.Lock()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            probe = self.folder / f".{uuid.uuid4().hex}.tmp"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise ConfigError(f"data.cache={folder}: cannot write there ({error.strerror}); name another folder") from None

    def get(self, key: str) -> bytes | None:
        """What was put under `key`, if it is still there and right."""
        path = self._path(key)
        try:
            content = path.read_bytes()
            os.utime(path)
        except OSError:
            self.misses += 1
            return None
        data = content[_CRC.size :]
        if len(content) < _CRC.size or _CRC.unpack_from(content)[0] != google_crc32c.value(data):
            self.drop(key)
            self.misses += 1
            return None
        self.hits += 1
        return data

    def put(self, key: str, data: bytes) -> None:
        """Keep `data`; on a full disk say so once, and keep nothing more."""
        if self._full or len(data) > self.limit:
            return
        if self._since + len(data) > self.limit // 64:
            self._make_room(len(data))
        path = self._path(key)
        temporary = self.folder / f".{uuid.uuid4().hex}.tmp"
        try:
            temporary.write_bytes(_CRC.pack(google_crc32c.value(data)) + data)
            os.replace(temporary, path)
            self._since += len(data)
        except OSError as error:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            with self._lock:  # several threads meet it at once
                first, self._full = not self._full, True
            if not first:
                return
            reason = "the disk is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else error.strerror
            print(f"data.cache={self.folder}: {reason}; going on without keeping more", file=sys.stderr, flush=True)

    def drop(self, key: str) -> None:
        """Forget `key`."""
        with contextlib.suppress(OSError):
            self._path(key).unlink(missing_ok=True)

    def _path(self, key: str) -> Path:
        return self.folder / hashlib.blake2b(key.encode(), digest_size=16).hexdigest()

    def _make_room(self, size: int) -> None:
        """Throw away the least recently used until `size` fits; one process at a time, the others do not wait."""
        with open(self.folder / ".lock", "a") as lock:
            if lock_file(lock) == "held":
                return
            entries, now = [], time.time()
            for entry in os.scandir(self.folder):
                with contextlib.suppress(OSError):  # another process may be faster
                    status = entry.stat()
                    if entry.name.endswith(".tmp"):
                        if now - status.st_mtime > _STALE:
                            os.unlink(entry.path)
                    elif not entry.name.startswith("."):
                        entries.append((status.st_mtime_ns, status.st_size, entry.path))
            total = sum(one[1] for one in entries) + size
            self._since = 0
            if total <= self.limit:
                return
            for _, length, path in sorted(entries):
                with contextlib.suppress(OSError):
                    os.unlink(path)
                total -= length
                if total <= _ROOM * self.limit:
                    return
