"""Who may commit: real processes that hold a place, die, and are taken for dead."""

import json
import multiprocessing
import os
import signal
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from pipeline import storage
from pipeline.checkpoint import fencing
from pipeline.checkpoint.fencing import FencedError, take
from pipeline.errors import ConfigError
from tests.support.servers import S3Server


@pytest.fixture(params=["path", "memory", "s3"])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "s3":
        s3: S3Server = request.getfixturevalue("s3")
        return f"{s3.uri}/{uuid.uuid4().hex}"
    return f"memory://{uuid.uuid4().hex}" if request.param == "memory" else str(tmp_path / "checkpoints")


def test_the_later_start_takes_over_and_the_earlier_learns_of_it(uri: str) -> None:
    first = take(uri)
    first.check()
    second = take(uri)  # the same process, as after a rollback
    second.check()
    with pytest.raises(FencedError, match=r"another training started there after this one \(start 2; this is start 1\)"):
        first.check()
    assert storage.names(uri) == ["fence-0000000002.json"]
    second.release()
    assert json.loads(storage.read_bytes(f"{uri}/fence-0000000002.json"))["released"] is True


def test_of_many_who_create_at_once_one_succeeds(uri: str) -> None:
    if uri.startswith("memory"):
        pytest.skip("a dictionary of this process")
    start, made = threading.Barrier(8), []

    def create(i: int) -> None:
        start.wait()
        if storage.create_bytes(f"{uri}/one", str(i).encode()):
            made.append(str(i))

    threads = [threading.Thread(target=create, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [storage.read_bytes(f"{uri}/one").decode()] == made
    assert storage.names(uri) == ["one"]


def hold(uri: str, host: str | None, told: Connection) -> None:
    """Take `uri`, as from another machine if `host` is one, and keep it until killed."""
    fencing.BEAT = 0.1
    if host:
        fencing.machine = lambda: host
        fencing.job = lambda: {"job_id": "7", "cluster_name": "c", "restart_count": "0"}
    take(uri)
    told.send(os.getpid())
    signal.pause()


@contextmanager
def holder(uri: str, host: str | None = None) -> Iterator[int]:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=hold, args=(uri, host, theirs))
    process.start()
    try:
        yield ours.recv()
    finally:
        process.kill()
        process.join()


@pytest.mark.long
def test_a_place_is_refused_while_its_training_lives_and_free_at_once_when_it_is_dead(tmp_path: Path) -> None:
    uri = str(tmp_path)
    with holder(uri) as pid, pytest.raises(ConfigError, match=f"process {pid} on .* is training there: stop that first"):
        take(uri)
    began = time.monotonic()
    assert take(uri).number == 2
    assert time.monotonic() - began < 1


@pytest.mark.long
def test_an_earlier_start_of_the_same_slurm_job_is_taken_over_however_alive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = str(tmp_path)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_CLUSTER_NAME", "c")
    with holder(uri, "elsewhere"):
        with pytest.raises(ConfigError, match="is training there"):  # the same start: two of them would be a mistake
            take(uri)
        monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
        began = time.monotonic()
        assert take(uri).number == 2
        assert time.monotonic() - began < 1


@pytest.mark.long
def test_of_another_host_a_start_waits_whether_it_is_renewed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = str(tmp_path)
    with holder(uri, "elsewhere") as pid, pytest.raises(ConfigError, match=f"process {pid} on .* is training there"):
        take(uri)
    monkeypatch.setattr(fencing, "BEAT", 0.2)
    began = time.monotonic()
    assert take(uri).number == 2
    assert 0.4 < time.monotonic() - began < 3
