import contextlib
import errno
import multiprocessing
import os
import signal
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.disk_cache import FOLDER, TAG, Cache
from pipeline.errors import ConfigError


def size(folder: Path) -> int:
    """Bytes of what is kept."""
    return sum(path.stat().st_size for path in (folder / FOLDER).iterdir() if path.name != TAG)


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
        assert size(folder) <= 20_000 * 65 // 64 + 12 * 80
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
    assert cache.get("a") == b"data" and [p.name for p in (tmp_path / FOLDER).iterdir() if p.name.endswith(".tmp")] == []


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


@pytest.mark.long
def test_processes_share_it_and_may_be_killed(tmp_path: Path) -> None:
    """Killed anywhere, they leave nothing that is taken for whole, and the limit holds."""
    context: Any = multiprocessing.get_context("spawn")
    workers = [context.Process(target=busy, args=(str(tmp_path), seed)) for seed in range(3)]
    for worker in workers:
        worker.start()
    deadline = time.monotonic() + 60
    while sum(1 for _ in tmp_path.glob(f"{FOLDER}/*")) < 30 and time.monotonic() < deadline:
        assert all(worker.is_alive() for worker in workers)
    for worker in workers:
        assert worker.is_alive()
        os.kill(worker.pid, signal.SIGKILL)
        worker.join()
    unfinished = [path for path in (tmp_path / FOLDER).iterdir() if path.name.endswith(".tmp")]
    for path in unfinished:
        os.utime(path, (0, 0))
    cache = Cache(str(tmp_path), 200_000)
    for key in range(60):
        data = cache.get(str(key))
        assert data is None or data == bytes([key]) * 5000
        cache.put(str(key), bytes([key]) * 5000)
    assert size(tmp_path) <= 200_000 * 65 // 64 + 12 * 60
    assert not any(path.exists() for path in unfinished)


FOREIGN = {
    "thesis.tex": b"x" * 3000,
    "thesis.tex.tmp": b"x" * 3000,
    "0123456789abcdef0123456789abcdef": b"x" * 3000,
    ".0123456789abcdef0123456789abcdef.tmp": b"x" * 3000,
    "notes/0123456789abcdef0123456789abcdef": b"x",
    ".hidden": b"x",
}


def plant(folder: Path) -> None:
    """Put files of a user into a folder, the oldest there are."""
    for name, data in FOREIGN.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
        os.utime(folder / name, (0, 0))


def planted(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in FOREIGN if (folder / name).exists()}


def test_files_of_others_are_neither_counted_nor_removed(tmp_path: Path) -> None:
    """Beside the cache, and in it, whatever their names and ages are, behind a link as well."""
    plant(tmp_path)
    cache = Cache(str(tmp_path), 10_000)
    plant(cache.folder)
    (tmp_path / "elsewhere").mkdir()
    plant(tmp_path / "elsewhere")
    for i, name in enumerate(("thesis.tex", "0123456789abcdef0123456789abcdef")):
        (cache.folder / f"{i:032x}").symlink_to(tmp_path / "elsewhere" / name)
    stale = [cache.folder / f".{7:032x}.01234567.tmp", cache.folder / f".{7:032x}.01234568.tmp"]
    for path in stale:
        path.touch()
    os.utime(stale[0], (0, 0))
    for i in range(40):
        cache.put(str(i), bytes(1000))
    for folder in (tmp_path, cache.folder, tmp_path / "elsewhere"):
        assert planted(folder) == FOREIGN
    assert [(cache.folder / f"{i:032x}").is_symlink() for i in (0, 1)] == [True, True]
    assert [path.exists() for path in stale] == [False, True], "an unfinished entry of a dead process goes, a new one stays"
    kept = [i for i in range(40) if cache.get(str(i))]
    assert 4 <= len(kept) <= 10 and kept[-1] == 39


@pytest.mark.parametrize("taken", ["link", "file", "folder", "tag"])
def test_the_name_of_the_cache_is_taken(tmp_path: Path, taken: str) -> None:
    plant(tmp_path / "elsewhere")
    place = tmp_path / FOLDER
    if taken == "link":
        place.symlink_to(tmp_path / "elsewhere")
    elif taken == "file":
        place.write_text("mine")
    else:
        plant(place)
        if taken == "tag":
            (place / TAG).write_text("Signature: 8a477f597d28d172789f06886806bc55\n# of another program")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ConfigError, match=r"biggan-cache is (a link|a file|not empty and is not a cache .*): set data"):
        Cache(str(tmp_path), 1000)
    assert sorted(tmp_path.rglob("*")) == before


def second_user(folder: str, limit: int, out: str) -> None:
    """Read and write a cache as somebody who may not write there."""
    os.setgroups([])
    os.setgid(54321)
    os.setuid(54321)
    with open(out, "w") as file, contextlib.redirect_stderr(file):
        cache = Cache(folder, limit)
        for i in range(30):
            cache.put(f"new {i}", bytes(1000))
        found = [cache.get("a"), cache.get("new 1")]
        cache.drop("a")
        print(found, file=file)


@pytest.mark.long
@pytest.mark.skipif(os.getuid() != 0, reason="only root can be somebody else")
@pytest.mark.parametrize(("mode", "said"), [(0o755, "Permission denied"), (0o1777, "it is full of what another user has kept")])
def test_two_users_share_a_cache(mode: int, said: str) -> None:
    """The second reads what the first has kept, keeps nothing where that is not permitted, and says so once."""
    with tempfile.TemporaryDirectory() as place:  # pytest's own folders are closed to others
        folder = Path(place, "cache")
        os.chmod(place, 0o777)
        first = Cache(str(folder), 10_000)
        first.put("a", b"data" * 2400)
        os.chmod(first.folder, mode)
        process = multiprocessing.get_context("spawn").Process(
            target=second_user, args=(str(folder), 10_000, str(Path(place, "said")))
        )
        process.start()
        process.join()
        assert process.exitcode == 0
        lines = Path(place, "said").read_text().splitlines()
        assert lines[0] == f"data.cache={folder}: {said}; going on without keeping more"
        assert lines[1:] == [str([b"data" * 2400, None])]
        assert first.get("a") == b"data" * 2400
