"""Reads of what the system has in memory, by many threads, and of what it has not."""

import errno
import os
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from pipeline.data import page_cache
from pipeline.data.page_cache import PageCache

SIZE = 1 << 20


def write(path: Path) -> bytes:
    """A file that is on the disk, so that the system may forget it."""
    data = os.urandom(SIZE)
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return data


def test_what_is_in_memory_is_read_and_what_is_not_is_not_waited_for(tmp_path: Path) -> None:
    path, memory = tmp_path / "file", PageCache()
    data = write(path)
    if memory.read(str(path), 0, 1) is None:
        pytest.skip("this file system cannot say what is in memory")
    assert memory.read(str(path), 4097, 70_000) == data[4097:74_097]
    assert memory.read(str(path), SIZE - 10, 20) is None  # not all there
    with open(path, "rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    assert memory.read(str(path), 500_000, 70_000) is None
    assert memory.read(str(tmp_path / "none"), 0, 1) is None


def test_threads_share_it_while_files_come_and_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More files than are kept open: one is closed while others read it, and its number is another file's at once."""
    monkeypatch.setattr(page_cache, "_FILES", 3)
    memory = PageCache()
    contents = {str(tmp_path / f"{i}"): write(tmp_path / f"{i}") for i in range(12)}
    before = len(os.listdir("/proc/self/fd"))

    def read(memory: PageCache, turn: int) -> bool:
        path, data = list(contents.items())[turn * 7 % 12]
        start = turn * 4099 % (SIZE - 5000)
        found = memory.read(path, start, 5000)
        assert found is None or found == data[start : start + 5000]  # the system may be busy with that page
        memory.will_need(path, start, start + 5000)
        return found is not None

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(partial(read, memory), range(4000))) > 3000
    assert len(os.listdir("/proc/self/fd")) <= before + 3
    del memory
    assert len(os.listdir("/proc/self/fd")) == before


def test_where_the_file_system_cannot_say_it_is_not_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def refuse(*_: object) -> int:
        calls.append(1)
        raise OSError(errno.EOPNOTSUPP, "not supported")

    write(tmp_path / "file")
    monkeypatch.setattr(os, "preadv", refuse)
    memory = PageCache()
    assert [memory.read(str(tmp_path / "file"), 0, 10) for _ in range(3)] == [None] * 3
    assert len(calls) == 1
