import errno
import multiprocessing
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.cache import Cache
from pipeline.errors import ConfigError


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def test_what_is_put_is_got_also_by_another(tmp_path: Path) -> None:
    cache = Cache(str(tmp_path), 1 << 20)
    assert cache.get("a") is None
    cache.put("a", b"data")
    assert Cache(str(tmp_path), 1 << 20).get("a") == b"data"
    cache.drop("a")
    assert cache.get("a") is None
    assert (cache.hits, cache.misses) == (0, 2)


@settings(max_examples=20)
@given(st.lists(st.tuples(st.integers(0, 30), st.integers(1, 4000)), max_size=80))
def test_it_never_grows_past_its_limit_by_more_than_a_64th(
    tmp_path_factory: pytest.TempPathFactory, puts: list[tuple[int, int]]
) -> None:
    folder = tmp_path_factory.mktemp("cache")
    cache = Cache(str(folder), 20_000)
    for key, length in puts:
        cache.put(str(key), b"x" * length)
        assert size(folder) <= 20_000 * 65 // 64 + 4 * 80
        assert cache.get(str(key)) == b"x" * length


def test_the_least_recently_used_go_first(tmp_path: Path) -> None:
    cache = Cache(str(tmp_path), 10_000)
    for i in range(9):
        cache.put(str(i), bytes(1000))
        os.utime(cache._path(str(i)), ns=(i, i))
    assert cache.get("0") is not None
    for i in range(9, 12):
        cache.put(str(i), bytes(1000))
    kept = {i for i in range(12) if cache._path(str(i)).exists()}
    assert 0 in kept and 1 not in kept and 11 in kept


def test_damage_is_a_miss(tmp_path: Path) -> None:
    cache = Cache(str(tmp_path), 1 << 20)
    for damage in (b"", b"\1\2", b"junkjunkjunk"):
        cache.put("a", b"data" * 10)
        cache._path("a").write_bytes(damage)
        assert cache.get("a") is None and not cache._path("a").exists()


def test_a_full_disk_is_said_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    cache = Cache(str(tmp_path), 1 << 20)
    cache.put("a", b"data")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    cache.put("b", b"data")
    cache.put("c", b"data")
    assert capsys.readouterr().err.count("the disk is full") == 1
    assert cache.get("a") == b"data" and [p.name for p in tmp_path.iterdir() if p.name.endswith(".tmp")] == []


def test_a_folder_that_refuses() -> None:
    with pytest.raises(ConfigError, match=r"data\.cache=/sys/biggan"):
        Cache("/sys/biggan", 1000)


def busy(folder: str, seed: int) -> None:
    cache = Cache(folder, 200_000)
    for i in range(10**9):
        key = (seed * 7 + i) % 60
        data = cache.get(str(key))
        assert data is None or data == bytes([key]) * 5000
        cache.put(str(key), bytes([key]) * 5000)


def test_processes_share_it_and_may_be_killed(tmp_path: Path) -> None:
    """Killed anywhere, they leave nothing that is taken for whole, and the limit holds."""
    context: Any = multiprocessing.get_context("spawn")
    workers = [context.Process(target=busy, args=(str(tmp_path), seed)) for seed in range(3)]
    for worker in workers:
        worker.start()
    deadline = time.monotonic() + 60
    while sum(1 for _ in tmp_path.iterdir()) < 30 and time.monotonic() < deadline:
        assert all(worker.is_alive() for worker in workers)
    for worker in workers:
        assert worker.is_alive()
        os.kill(worker.pid, signal.SIGKILL)
        worker.join()
    unfinished = [path for path in tmp_path.iterdir() if path.name.endswith(".tmp")]
    for path in unfinished:
        os.utime(path, (0, 0))
    cache = Cache(str(tmp_path), 200_000)
    for key in range(60):
        data = cache.get(str(key))
        assert data is None or data == bytes([key]) * 5000
        cache.put(str(key), bytes([key]) * 5000)
    assert size(tmp_path) <= 200_000 * 65 // 64 + 4 * 60
    assert not any(path.exists() for path in unfinished)
