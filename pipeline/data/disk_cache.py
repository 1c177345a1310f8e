"""Bytes of shards on a local disk, shared by the processes of a node, within a size.

They are in a folder of their own below the one that the user names, with a marker (a CACHEDIR.TAG, which backups skip).
Nothing else is counted or removed, also not what earlier versions have kept beside it. One file for each entry, its name a
hash of the key, its content a mark, a crc32c and the bytes. An entry appears whole, by renaming; what is found is checked, and
thrown away if it is wrong. The least recently used go first. What another user has kept there is read, where that is permitted.
"""

import contextlib
import errno
import hashlib
import os
import re
import struct
import sys
import tempfile
import threading
import time
from pathlib import Path

import google_crc32c

from pipeline.errors import ConfigError
from pipeline.storage.file_locks import lock_file
from pipeline.storage.ownership import refuse_foreign
from pipeline.storage.removal import remove_entry
from pipeline.storage.temporary import replacing

FOLDER = "biggan-cache"
TAG = "CACHEDIR.TAG"
_MARKER = b"""Signature: 8a477f597d28d172789f06886806bc55
# Shards that `biggan train` has read, for data.cache. This folder may be deleted at any time.
"""
_MARK = b"bgcache1"
_HEAD = struct.Struct(f"<{len(_MARK)}sI")
_ENTRY = re.compile(r"[0-9a-f]{32}")
_UNFINISHED = re.compile(r"\.[0-9a-f]{32}\.[0-9a-f]{8}\.tmp")
_STALE = 600.0  # seconds after which an unfinished file is that of a dead process
_ROOM = 0.9  # of the limit, that is left filled when there is too much


class Cache:
    """At most `limit` bytes in the folder `biggan-cache` below `folder`, passed by no more than a 64th for each process.

    Raises ConfigError if it cannot be made there, or if that name is taken by a link or by files of others.
    """

    def __init__(self, folder: str, limit: int) -> None:
        self.folder, self.limit = Path(folder, FOLDER), limit
        self.hits = self.misses = 0
        self._since = limit  # bytes written since the folder was last looked through; at first it is
        self._full = False
        self._lock = threading.Lock()
        if self.folder.is_symlink():
            raise ConfigError(f"data.cache={folder}: {self.folder} is a link: set data.cache=NEW_FOLDER")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            place, advice = f"data.cache={folder}: {self.folder}", "set data.cache=NEW_FOLDER"
            refuse_foreign(place, str(self.folder), advice, "a cache", lambda names: self._is_marked())
            if not self._is_marked():
                with replacing(self.folder / TAG) as marker:
                    marker.write_bytes(_MARKER)
            with tempfile.TemporaryFile(dir=self.folder):
                pass
        except FileExistsError:
            raise ConfigError(f"data.cache={folder}: {self.folder} is a file: set data.cache=NEW_FOLDER") from None
        except OSError as error:
            if not self._is_marked():
                raise ConfigError(f"data.cache={folder}: cannot write there ({error.strerror}); name another folder") from None
            self._keep_nothing_more(error.strerror or str(error))

    def get(self, key: str) -> bytes | None:
        """What was put under `key`, if it is still there and right."""
        path = self._path(key)
        try:
            with open(path, "rb", opener=_open_entry) as file:
                content = file.read()
        except OSError:
            self.misses += 1
            return None
        data = content[_HEAD.size :]
        if content[: _HEAD.size] != _HEAD.pack(_MARK, google_crc32c.value(data)):
            self.drop(key)
            self.misses += 1
            return None
        with contextlib.suppress(OSError):  # another user's looks older than it is
            os.utime(path, follow_symlinks=False)
        self.hits += 1
        return data

    def put(self, key: str, data: bytes) -> None:
        """Keep `data`; where that is not possible say so once, and keep nothing more."""
        if self._full or len(data) > self.limit:
            return
        try:
            if self._since + len(data) > self.limit // 64 and not self._make_room(len(data)):
                return
            with replacing(self._path(key)) as temporary:
                temporary.write_bytes(_HEAD.pack(_MARK, google_crc32c.value(data)) + data)
            self._since += len(data)
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            self._keep_nothing_more("the disk is full" if full else error.strerror or str(error))

    def drop(self, key: str) -> None:
        """Forget `key`."""
        remove_entry(self._path(key), b"")

    def _path(self, key: str) -> Path:
        return self.folder / hashlib.blake2b(key.encode(), digest_size=16).hexdigest()

    def _is_marked(self) -> bool:
        try:
            return (self.folder / TAG).read_bytes() == _MARKER
        except OSError:
            return False

    def _make_room(self, size: int) -> bool:
        """Throw away the least recently used until `size` fits; return whether there is room, as far as this process can tell.

        One process at a time does this, the others do not wait.
        """
        with open(self.folder / ".lock", "rb", opener=_open_lock) as lock:
            if lock_file(lock) == "held":
                return True
            entries, now = [], time.time()
            for entry in os.scandir(self.folder):
                with contextlib.suppress(OSError):  # another process may be faster
                    status = entry.stat(follow_symlinks=False)
                    if _UNFINISHED.fullmatch(entry.name) and now - status.st_mtime > _STALE:
                        remove_entry(Path(entry.path), b"")
                    elif _ENTRY.fullmatch(entry.name):
                        entries.append((status.st_mtime_ns, status.st_size, entry.path))
            total = sum(one[1] for one in entries) + size
            self._since = 0
            if total <= self.limit:
                return True
            for _, length, path in sorted(entries):
                if remove_entry(Path(path), _MARK) is not False:  # gone; or a file of others, which does not count
                    total -= length
                if total <= _ROOM * self.limit:
                    return True
        if total > self.limit:
            self._keep_nothing_more("it is full of what another user has kept")
        return total <= self.limit

    def _keep_nothing_more(self, reason: str) -> None:
        with self._lock:  # several threads meet it at once
            first, self._full = not self._full, True
        if first:
            print(f"data.cache={self.folder.parent}: {reason}; going on without keeping more", file=sys.stderr, flush=True)


def _open_lock(path: str, _: int) -> int:
    """Open the lock, which may be another user's; never behind a link."""
    flags = os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | flags, 0o666)
    except PermissionError:
        return os.open(path, os.O_RDONLY | flags)


def _open_entry(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)
