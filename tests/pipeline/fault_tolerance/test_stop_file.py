"""RUN/STOP: whatever is called so is a request, and only a plain file is ever removed."""

import os
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pipeline import variables
from pipeline.cluster.launch import forget_stop
from pipeline.cluster.launch_folder import launch_folder
from pipeline.engine.ranks import Ranks
from pipeline.errors import ConfigError
from pipeline.fault_tolerance import stop
from pipeline.fault_tolerance.stop import Signals, Stop, StopConfig


class One(Ranks):
    """A rank that is alone, without a process group."""

    def greatest(self, number: int) -> int:
        return number


@pytest.fixture
def asking(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], str | None]:
    """What a training in a folder agrees on."""
    monkeypatch.setattr(Signals, "__init__", lambda self: self.__dict__.update(began=time.monotonic(), received=""))
    return lambda folder: Stop(
        StopConfig(max_time="1h"), folder, Signals(), One(rank=0, world_size=1, device=torch.device("cpu"))
    ).agreed()


def a_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(path))


def a_loop(path: Path) -> None:
    path.symlink_to(path)


def unreadable(path: Path) -> None:
    path.write_text("SIGTERM")
    path.chmod(0)


PLAIN: list[Callable[[Path], object]] = [
    Path.touch,
    lambda path: path.write_bytes(b"\xff\xfe\0\x1b]0;pwned\x07" * 1000),
    lambda path: path.write_text("biggan: error: your run is lost"),
    unreadable,
]
OTHERS: list[tuple[str, Callable[[Path], object]]] = [
    ("a folder", Path.mkdir),
    ("a link", a_loop),
    ("a link", lambda path: path.symlink_to("/nowhere/at/all")),
    ("a link", lambda path: path.symlink_to("/dev/zero")),
    ("a pipe", os.mkfifo),
    ("a socket", a_socket),
    ("a file of 1,099,511,627,776 bytes", lambda path: os.truncate(os.open(path, os.O_CREAT | os.O_WRONLY), 1 << 40)),
]


def test_nothing_is_no_request(tmp_path: Path, asking: Callable[[Path], str | None]) -> None:
    assert asking(tmp_path) is None and asking(tmp_path / "gone") is None
    (tmp_path / "file").touch()
    assert asking(tmp_path / "file") is None


@pytest.mark.parametrize("make", PLAIN)
def test_a_plain_file_is_a_request_whatever_it_says(
    tmp_path: Path, make: Callable[[Path], object], asking: Callable[[Path], str | None]
) -> None:
    (tmp_path / "run.json").touch()
    make(tmp_path / "STOP")
    assert asking(tmp_path) in ("RUN/STOP", "SIGTERM" if make is unreadable and os.getuid() == 0 else None)
    stop.request(tmp_path, "SIGHUP")  # the first one stays
    assert asking(tmp_path) != "SIGHUP"
    forget_stop(tmp_path)
    assert os.listdir(tmp_path) == ["run.json"] and asking(tmp_path) is None


@pytest.mark.parametrize(("kind", "make"), OTHERS)
def test_anything_else_is_a_request_that_stays(
    tmp_path: Path, kind: str, make: Callable[[Path], object], asking: Callable[[Path], str | None]
) -> None:
    (tmp_path / "run.json").touch()
    make(tmp_path / "STOP")
    assert asking(tmp_path) == "RUN/STOP"
    stop.request(tmp_path)
    stop.forget(tmp_path)  # after the stop
    assert asking(tmp_path) == "RUN/STOP"
    with pytest.raises(ConfigError, match=rf"{tmp_path}/STOP, {kind}, asks each training there to stop: move it away, then "):
        forget_stop(tmp_path)  # before the next start
    assert sorted(os.listdir(tmp_path)) == ["STOP", "run.json"]


def test_the_launcher_asks_where_the_disk_of_the_run_takes_nothing(
    tmp_path: Path, asking: Callable[[Path], str | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variables.LAUNCH_FOLDER, str(tmp_path))
    stop.request(tmp_path, "SIGTERM")
    assert asking(tmp_path / "gone") == "SIGTERM"


def test_the_wall_clock_stops_nothing(
    tmp_path: Path, asking: Callable[[Path], str | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 4 * 3600)
    assert asking(tmp_path) is None
    hour = time.monotonic() + 3601
    monkeypatch.setattr(time, "monotonic", lambda: hour)
    assert (
        stop.Stop(
            StopConfig(max_time="1h"), tmp_path, Signals(), One(rank=0, world_size=1, device=torch.device("cpu"))
        ).agreed()
        is None
    )
    began = Signals()
    began.began = hour - 3601
    assert (
        stop.Stop(StopConfig(max_time="1h"), tmp_path, began, One(rank=0, world_size=1, device=torch.device("cpu"))).agreed()
        == "stop.max_time"
    )


def test_what_a_killed_launcher_leaves_goes_with_the_next_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    if not (child := os.fork()):
        with launch_folder() as place:
            for name in ("status.json", "progress", "config.yaml", ".status.json.01234567.tmp"):
                (place / name).touch()
            os._exit(9)
    os.waitpid(child, 0)
    (left,) = tmp_path.iterdir()
    assert left.stat().st_mode & 0o077 == 0
    foreign = tmp_path / "biggan-launch-thesis"
    foreign.mkdir(mode=0o700)
    (foreign / "draft.tex").touch()
    with launch_folder() as ours, launch_folder() as other:  # one that lives stays
        assert sorted(tmp_path.iterdir()) == sorted([foreign, ours, other])
    assert os.listdir(tmp_path) == [foreign.name] and os.listdir(foreign) == ["draft.tex"]
