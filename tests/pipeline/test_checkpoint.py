"""Checkpoints under kills, faults and damage. Optimiser state in real engines: tests/jobs/test_train.py."""

import json
import logging
import multiprocessing
import os
import random
import signal
import uuid
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch

from pipeline import checkpoint, storage
from pipeline.checkpoint import COMMIT, Checkpoint, Progress, Tensors, committed, newest, save
from pipeline.errors import DataError
from tests.conftest import S3Server


def tensors(images: int) -> dict[str, Tensors]:
    """Contents that tell checkpoints apart."""
    return {name: {"w": torch.full((64, 64), float(images)), "b": torch.arange(3)} for name in ("generator", "ema")}


def save_at(uri: str, *images: int, keep: int = 2) -> None:
    for n in images:
        save(uri, Progress(n, n // 10), tensors(n), {"world_size": 2}, keep)


def assert_whole(found: Checkpoint | None, images: int) -> None:
    assert found is not None and found.images == images
    assert found.progress() == Progress(images, images // 10)
    assert found.state()["world_size"] == 2
    for name, part in tensors(images).items():
        assert all(torch.equal(found.tensors(name)[key], value) for key, value in part.items())


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
    assert sorted(left) == sorted([COMMIT, "ema.safetensors", "generator.safetensors", "state.json"] * 2)
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
@pytest.mark.parametrize("operation", ["write_bytes", "remove", "remove_folder"])
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
    assert k >= {"write_bytes": 4, "remove": 2, "remove_folder": 2}[operation]


@pytest.mark.parametrize("k", range(4))
def test_writing_over_a_damaged_one_and_dying_keeps_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, k: int
) -> None:
    uri = str(tmp_path)
    save_at(uri, 100, 200)
    damage(tmp_path / "0000000200" / "ema.safetensors")
    calls = 0
    real = storage.write_bytes

    def failing(place: str, data: bytes) -> None:
        nonlocal calls
        calls += 1
        if calls > k:
            raise Fault
        real(place, data)

    with monkeypatch.context() as patch, pytest.raises(Fault):
        patch.setattr(storage, "write_bytes", failing)
        save_at(uri, 200)
    assert_whole(newest(uri), 100)
    save_at(uri, 200)
    assert_whole(newest(uri), 200)


def save_without_end(uri: str, first: int, told: Connection) -> None:
    for images in range(first, first + 1_000_000):
        save_at(uri, images)
        told.send(images)


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


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


@pytest.mark.parametrize("harm", [damage, cut, os.unlink])
@pytest.mark.parametrize("name", ["generator.safetensors", "state.json", COMMIT])
def test_a_damaged_one_is_named_and_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture, harm, name: str) -> None:  # type: ignore[no-untyped-def]
    save_at(str(tmp_path), 100, 200)
    harm(tmp_path / "0000000200" / name)
    with caplog.at_level(logging.WARNING):
        assert_whole(newest(str(tmp_path)), 100)
    if (name, harm) != (COMMIT, os.unlink):  # that is how an unfinished one looks
        assert "0000000200" in caplog.text and caplog.text.count("\n") == 1


@pytest.mark.parametrize("content", ["[]", "{}", "null", '{"files": {}}'])
def test_a_commit_of_another_kind_is_no_checkpoint(tmp_path: Path, content: str) -> None:
    save_at(str(tmp_path), 100, 200)
    (tmp_path / "0000000200" / COMMIT).write_text(content)
    assert_whole(newest(str(tmp_path)), 100)


def test_reading_what_was_not_committed_says_what_to_delete(tmp_path: Path) -> None:
    save_at(str(tmp_path), 100)
    damage(tmp_path / "0000000100" / "ema.safetensors")
    found = next(committed(str(tmp_path)))
    with pytest.raises(DataError, match=f"delete the folder {tmp_path}/0000000100") as caught:
        found.tensors("ema")
    assert caught.value.exit_code == 65


def test_damaged_newer_ones_never_push_out_what_training_has_saved_since(tmp_path: Path) -> None:
    save_at(str(tmp_path), 100, 200, 300, keep=3)
    for name in ("0000000200", "0000000300"):
        damage(tmp_path / name / "ema.safetensors")
    save_at(str(tmp_path), 150)
    assert_whole(newest(str(tmp_path)), 150)
    assert storage.names(str(tmp_path)) == ["0000000100", "0000000150"]


def test_other_files_beside_checkpoints_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("mine")
    save_at(str(tmp_path), 100, 200, 300)
    assert (tmp_path / "notes" / "a.txt").read_text() == "mine"


def test_the_commit_lists_what_is_there(tmp_path: Path) -> None:
    save_at(str(tmp_path), 100)
    folder = tmp_path / "0000000100"
    listed = json.loads((folder / COMMIT).read_text())["files"]
    assert set(listed) | {COMMIT} == set(os.listdir(folder))
    assert {name: row["bytes"] for name, row in listed.items()} == {name: (folder / name).stat().st_size for name in listed}
    assert checkpoint.Checkpoint(str(folder), listed).images == 100
