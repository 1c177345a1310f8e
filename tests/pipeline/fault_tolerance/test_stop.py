"""Stop requests: what is noted, what the ranks agree on, what a cloud's metadata server says."""

import itertools
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data.loader import DataConfig, DataLoader
from pipeline.data.manifest import load_manifest
from pipeline.engine.ranks import Ranks
from pipeline.fault_tolerance import stop
from pipeline.fault_tolerance.stop import REASONS, Signals, Stop, StopConfig, duration
from pipeline.signals import SIGNALS
from pipeline.storage.run_lock import is_training, lock


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    before = [(number, signal.getsignal(number)) for number in SIGNALS]
    yield
    for number, handler in before:
        signal.signal(number, handler)


@given(st.integers(0, 9), st.integers(0, 99), st.integers(0, 99), st.integers(0, 10**6))
def test_durations(days: int, hours: int, minutes: int, seconds: int) -> None:
    wanted = ((days * 24 + hours) * 60 + minutes) * 60 + seconds
    assert duration(f"{days}d{hours}h{minutes}m{seconds}s") == duration(str(wanted)) == wanted
    assert StopConfig(max_time=f"{hours + 1}h{minutes}m").seconds == (hours + 1) * 3600 + minutes * 60


@pytest.mark.parametrize("text", ["", "3x", "1.2.3h", "50m3h", "3:50:00", "-5", "h", "0", "nan"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="max_time"):
        StopConfig(max_time=text)


def test_the_first_signal_is_noted_and_none_kills() -> None:
    signals = Signals()
    for number in (signal.SIGUSR2, signal.SIGTERM, signal.SIGUSR1):
        os.kill(os.getpid(), number)
    assert signals.received == "SIGUSR2"


def test_a_signal_to_the_launcher_waits_as_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGUSR1)
    with stop.forwarded(tmp_path, tmp_path):
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGTERM)
        assert (tmp_path / "STOP").read_text() == "SIGUSR1"
    assert signal.getsignal(signal.SIGUSR1) is before
    (own := tmp_path / "own").mkdir()
    with stop.forwarded(tmp_path / "nowhere", own):  # RUN's disk takes no file: the launcher's own folder does
        os.kill(os.getpid(), signal.SIGUSR1)
    assert stop.requested(own) == "SIGUSR1" and capsys.readouterr().err == ""
    with stop.forwarded(tmp_path / "nowhere", tmp_path / "nowhere"):
        os.kill(os.getpid(), signal.SIGUSR1)
    assert "SIGUSR1 cannot be passed on" in capsys.readouterr().err


def test_before_there_is_anything_to_save_a_signal_ends_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left, stop.at_once():
        os.kill(os.getpid(), signal.SIGUSR2)
    assert left.value.code == 75
    assert capsys.readouterr().out.startswith("stopped by SIGUSR2 before training began")


def test_only_a_training_keeps_a_request(tmp_path: Path) -> None:
    assert not is_training(tmp_path)
    with lock(tmp_path):
        assert is_training(tmp_path)
    assert not is_training(tmp_path)


@pytest.mark.long
def test_transforms_go_on_when_the_launcher_signals_the_whole_process_group(shards: Path) -> None:
    config = DataConfig(uri=str(shards), transform="tests.support.transforms:shifted", read_ahead=1)
    place = {"seed": 0, "global_batch": 32, "micro_batch": 32, "rank": 0, "world_size": 1}
    with DataLoader(config, load_manifest(str(shards)), **place) as batches:
        next(batches)
        children = multiprocessing.active_children()
        assert children
        for child, number in itertools.product(children, SIGNALS):
            assert child.pid
            os.kill(child.pid, number)
        assert [len(batch.images) for batch in itertools.islice(batches, 12)] == [32] * 12
        assert all(child.is_alive() for child in children)


ROUNDS = (
    # Which rank is asked, before which step, and how.
    (1, 2, "signal", "SIGTERM"),
    (0, 0, "signal", "SIGUSR1"),
    (0, 3, "file", "RUN/STOP"),
    (0, 1, "passed on", "SIGUSR2"),
    (1, 1, "notice", "the cloud's notice"),
    (1, 0, "time", "stop.max_time"),
)


def _one_of_two(rank: int, folder: str) -> None:
    """Note for every round when this rank stops, and why. Both are on one node."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    ranks, noted = Ranks(rank=rank, world_size=2, device=torch.device("cpu"), local_rank=rank), []
    for asked, at, how, _ in ROUNDS:
        asking = Stop(StopConfig(max_time="1h"), Path(folder), Signals(), ranks)
        for step in range(5):
            if (rank, step) == (asked, at):
                if how == "signal":
                    os.kill(os.getpid(), signal.SIGTERM if at else signal.SIGUSR1)
                elif how in ("file", "passed on"):
                    stop.request(Path(folder), "SIGUSR2" if how == "passed on" else "")
                elif how == "notice":
                    asking._notice.set()
                else:
                    asking._deadline = time.monotonic() - 1
            if reason := asking.agreed():
                noted.append((step, reason))
                break
        dist.barrier()
        if rank == 0:
            stop.forget(Path(folder))
    Path(folder, f"rank{rank}.json").write_text(json.dumps(noted))
    dist.destroy_process_group()


@pytest.mark.long
def test_all_ranks_stop_at_the_same_step(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_one_of_two, (str(tmp_path),), 2)
    for rank in (0, 1):
        assert json.loads((tmp_path / f"rank{rank}.json").read_text()) == [[at, reason] for _, at, _, reason in ROUNDS]


LAUNCHER = """
import subprocess, sys, time
from pathlib import Path
from pipeline.fault_tolerance import stop
with stop.forwarded(Path(sys.argv[1]), Path(sys.argv[1])):
    worker = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, start_new_session=True)
    print(worker.pid, flush=True)
    input()
    worker.communicate(b"\\n")
"""


def launcher(folder: Path, ignored: Sequence[signal.Signals] = ()) -> tuple[subprocess.Popen[str], int]:
    """A process inside `stop.forwarded`, and the pid of its worker, which is in a session of its own."""

    def ignore() -> None:
        for number in (signal.SIGHUP, signal.SIGTSTP):
            signal.signal(number, signal.SIG_IGN if number in ignored else signal.SIG_DFL)

    process = subprocess.Popen(
        [sys.executable, "-c", LAUNCHER, folder],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=ignore,  # noqa: PLW1509 - as nohup does it
    )
    assert process.stdout
    return process, int(process.stdout.readline())


def until(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_a_terminal_that_closes_asks_for_a_stop_and_nohup_has_it_ignored(tmp_path: Path) -> None:
    process, _ = launcher(tmp_path)
    process.send_signal(signal.SIGHUP)
    until((tmp_path / "STOP").exists)
    assert (tmp_path / "STOP").read_text() == "SIGHUP" and "SIGHUP" in REASONS
    process.communicate("\n", timeout=60)
    assert process.returncode == 0
    (tmp_path / "STOP").unlink()
    process, _ = launcher(tmp_path, [signal.SIGHUP])
    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGUSR1)  # comes later, and is heeded
    until((tmp_path / "STOP").exists)
    assert (tmp_path / "STOP").read_text() == "SIGUSR1"
    process.communicate("\n", timeout=60)
    assert process.returncode == 0


def test_ctrl_z_stops_the_workers_too_until_they_may_continue(tmp_path: Path) -> None:
    process, worker = launcher(tmp_path)
    for _ in range(2):
        process.send_signal(signal.SIGTSTP)
        until(lambda: state(process.pid) == state(worker) == "T")
        process.send_signal(signal.SIGCONT)
        until(lambda: "T" not in (state(process.pid), state(worker)))
    process.communicate("\n", timeout=60)
    assert process.returncode == 0 and not (tmp_path / "STOP").exists()
