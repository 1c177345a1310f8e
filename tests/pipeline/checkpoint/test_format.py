"""Checkpoints under kills, faults and damage. Optimiser state in real engines: tests/jobs/test_train.py."""

import hashlib
import json
import logging
import multiprocessing
import os
import random
import signal
import uuid
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline import storage
from pipeline.checkpoint import format, rank_files
from pipeline.checkpoint.commit_document import Files
from pipeline.checkpoint.format import COMMIT, Progress, committed, newest
from pipeline.checkpoint.pruning import save
from pipeline.engine.ranks import Ranks
from pipeline.engine.slices import Slice, share, whole
from pipeline.errors import ConfigError, DataError
from tests.support.checkpoints import assert_whole, damage, save_at
from tests.support.servers import S3Server


@pytest.fixture(params=["path", "memory", "s3"])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "s3":
        s3: S3Server = request.getfixturevalue("s3")
        return f"{s3.uri}/{uuid.uuid4().hex}"
    return f"memory://{uuid.uuid4().hex}" if request.param == "memory" else str(tmp_path / "checkpoints")


def test_the_newest_are_kept_and_read_back(uri: str) -> None:
    assert newest(uri) is None
    save_at(uri, 100, 200, 1000, keep=3)
    save_at(uri, 2000, keep=2)
    assert [c.images for c in committed(uri)] == [2000, 1000]
    left = [name for folder in storage.names(uri) for name in storage.names(f"{uri}/{folder}")]
    assert sorted(left) == sorted([COMMIT, "ema.rank00000.safetensors", "generator.rank00000.safetensors", "state.json"] * 2)
    assert_whole(newest(uri), 2000)


def test_a_copy_is_stored_not_a_view(tmp_path: Path) -> None:
    """Rows of a transposed matrix, tied weights and parameters that learn: safetensors refuses or mixes up their storage."""
    weight = torch.nn.Parameter(torch.arange(6.0).view(2, 3))
    save(str(tmp_path), Progress(1), {"generator": {"a": weight, "b": weight.T, "c": weight[:, 1]}}, {}, 2)
    found = newest(str(tmp_path))
    assert found
    read = found.tensors("generator")
    assert torch.equal(read["a"], weight) and torch.equal(read["b"], weight.T) and torch.equal(read["c"], weight[:, 1])


class Fault(Exception):
    """What stands for the process's end."""


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("operation", ["write_chunks", "write_bytes", "remove", "remove_empty"])
def test_an_end_at_any_step_of_a_save_leaves_a_whole_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, operation: str, after: bool
) -> None:
    """Storage works until its k-th call, for every k: then the newest is the old or the new one, and the next save works."""
    real = getattr(storage, operation)
    for k in range(100):
        uri = str(tmp_path / str(k))
        save_at(uri, 100, 200)
        calls = 0

        def failing(*args: object, last: int = k) -> None:
            nonlocal calls
            calls += 1
            if calls - 1 == last and not after:
                raise Fault
            real(*args)
            if calls - 1 == last:
                raise Fault

        with monkeypatch.context() as patch:
            patch.setattr(storage, operation, failing)
            try:
                save_at(uri, 300)
            except Fault:
                pass
            else:
                break
        found = newest(uri)
        assert found
        assert_whole(found, found.images)
        assert found.images in (200, 300)
        save_at(uri, 300)
        assert_whole(newest(uri), 300)
        assert storage.names(uri) == ["0000000200", "0000000300"]
    assert k >= {"write_chunks": 3, "write_bytes": 1, "remove": 2, "remove_empty": 1}[operation]


@pytest.mark.parametrize("k", range(4))
def test_writing_over_a_damaged_one_and_dying_keeps_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, k: int
) -> None:
    uri = str(tmp_path)
    save_at(uri, 100, 200)
    damage(tmp_path / "0000000200" / "ema.rank00000.safetensors")
    calls = 0

    def failing(real: Callable[[str, Any], None], place: str, data: Any) -> None:
        nonlocal calls
        calls += 1
        if calls > k:
            raise Fault
        real(place, data)

    with monkeypatch.context() as patch, pytest.raises(Fault):
        for name in ("write_chunks", "write_bytes"):
            patch.setattr(storage, name, partial(failing, getattr(storage, name)))
        save_at(uri, 200)
    assert_whole(newest(uri), 100)
    save_at(uri, 200)
    assert_whole(newest(uri), 200)


def save_without_end(uri: str, first: int, told: Connection) -> None:
    for images in range(first, first + 1_000_000):
        save_at(uri, images)
        told.send(images)


@pytest.mark.long
def test_kill_9_at_random_moments(tmp_path: Path) -> None:
    """A real process that does nothing but save is killed; what it has told of as saved is there, or a newer one."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([save_without_end.__module__])
    rng = random.Random(0)
    last = 0
    for _ in range(12):
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=save_without_end, args=(str(tmp_path), last + 1, theirs))
        process.start()
        theirs.close()
        told = ours.recv()
        process.join(rng.uniform(0, 0.05))
        assert process.pid
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        try:
            while True:
                told = ours.recv()
        except EOFError:
            pass
        found = newest(str(tmp_path))
        assert found and found.images in (told, told + 1) and told > last
        assert_whole(found, found.images)
        last = found.images
    save_at(str(tmp_path), last + 1)
    assert len(storage.names(str(tmp_path))) == 2


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


@pytest.mark.parametrize("harm", [damage, cut, os.unlink])
@pytest.mark.parametrize("name", ["generator.rank00000.safetensors", "ema.rank00000.safetensors", "state.json", COMMIT])
def test_a_damaged_one_is_named_and_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture, harm, name: str) -> None:  # type: ignore[no-untyped-def]
    save_at(str(tmp_path), 100, 200)
    harm(tmp_path / "0000000200" / name)
    with caplog.at_level(logging.WARNING):
        assert_whole(newest(str(tmp_path)), 100)
    if (name, harm) != (COMMIT, os.unlink):  # that is how an unfinished one looks
        assert "0000000200" in caplog.text and caplog.text.count("\n") == 1


@pytest.mark.parametrize("content", ["[]", "{}", "null", '{"files": {}}', '{"commit": {"format": 2}, "sha256": "0"}'])
def test_a_commit_of_another_kind_is_no_checkpoint(tmp_path: Path, content: str) -> None:
    save_at(str(tmp_path), 100, 200)
    (tmp_path / "0000000200" / COMMIT).write_text(content)
    assert_whole(newest(str(tmp_path)), 100)


def test_one_of_a_newer_format_is_refused_not_passed_over(tmp_path: Path) -> None:
    save_at(str(tmp_path), 100, 200)
    body = {"format": 3, "whatever": []}
    commit = {"commit": body, "sha256": hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()}
    (tmp_path / "0000000200" / COMMIT).write_text(json.dumps(commit))
    with pytest.raises(ConfigError, match="0000000200 has format 3, this version reads format 2: use the version that"):
        newest(str(tmp_path))


def test_one_of_another_network_is_refused(tmp_path: Path) -> None:
    save_at(str(tmp_path), 100)
    found = newest(str(tmp_path))
    assert found
    for name, shape, has in (("w", (64, 32), r"\[64, 64\] w"), ("x", (1,), "no x")):
        with pytest.raises(ConfigError, match=f"its ema is of another network: it has {has}, the configuration's has"):
            found.fill("ema", [Slice(name, shape, 0, torch.zeros(1))])


@pytest.mark.long
@given(numbers=st.lists(st.integers(0, 40), min_size=1, max_size=5), wrote=st.integers(1, 7), reads=st.integers(1, 7))
def test_any_number_of_ranks_reads_what_any_other_wrote(numbers: list[int], wrote: int, reads: int) -> None:
    """Tensors of any sizes, cut evenly over the ranks that write, read as slices cut over other ranks."""
    uri = f"memory://{uuid.uuid4().hex}/0000000001"
    tensors = {f"t{i}": torch.rand(n, 2) for i, n in enumerate(numbers) if n}
    files: Files = {}
    for rank in range(wrote):
        files |= rank_files.write_part(
            uri, "ema", rank, share(whole(tensors), Ranks(rank=rank, world_size=wrote, device=torch.device("cpu")))
        )
    files |= rank_files.write_state(uri, Progress(1), {})
    format.commit(uri, files, {"ema": {name: list(t.shape) for name, t in tensors.items()}})
    found = format.load(uri)
    assert all(torch.equal(found.tensors("ema")[name], t) for name, t in tensors.items())
    read = {name: torch.full_like(t, -1) for name, t in tensors.items()}
    sizes = []
    for rank in range(reads):
        mine = share(whole(read), Ranks(rank=rank, world_size=reads, device=torch.device("cpu")))
        sizes.append(sum(len(s.data) for s in mine))
        found.fill("ema", mine)
    assert max(sizes) - min(sizes) <= 1
    assert all(torch.equal(read[name], t) for name, t in tensors.items())


def test_a_tensor_that_is_not_all_there_is_not_committed(tmp_path: Path) -> None:
    files = rank_files.write_part(str(tmp_path), "ema", 0, [Slice("w", (4,), 0, torch.ones(3))])
    with pytest.raises(RuntimeError, match=r"ema w \[4\] is saved as \[\[0, 3\]\]"):
        format.commit(str(tmp_path), files, {"ema": {"w": [4]}})
    assert not storage.exists(str(tmp_path / COMMIT))


def test_reading_a_damaged_file_names_it_and_deletes_nothing(tmp_path: Path) -> None:
    save_at(str(tmp_path), 100)
    damage(tmp_path / "0000000100" / "ema.rank00000.safetensors")
    found = next(committed(str(tmp_path)))
    with pytest.raises(DataError, match=f"^{found.uri}/ema.rank00000.safetensors is damaged: .* use another") as caught:
        found.tensors("ema")
    assert caught.value.exit_code == 65


def test_the_commit_lists_what_is_there(tmp_path: Path) -> None:
    save_at(str(tmp_path), 100)
    folder = tmp_path / "0000000100"
    found = format.load(str(folder))
    listed = found.files
    assert set(listed) | {COMMIT} == set(os.listdir(folder))
    assert {name: row.bytes for name, row in listed.items()} == {name: (folder / name).stat().st_size for name in listed}
    assert found.images == 100 and found.parts == {"generator", "ema"}
    assert found.shapes["ema"] == {"w": [64, 64], "b": [3]}
    assert listed["ema.rank00000.safetensors"].slices == {"w": [0, 4096], "b": [0, 3]}
