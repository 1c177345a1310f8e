"""One training at a time holds a run's folder."""

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.errors import ConfigError
from pipeline.liveness import machine, started
from pipeline.storage.run_lock import is_training, lock

HOLD = """
import sys, time
from pathlib import Path
from pipeline.storage.run_lock import lock
held = lock(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(600)
"""


@pytest.mark.long
def test_one_training_at_a_time_and_a_killed_one_lets_go(tmp_path: Path) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE)
    try:
        assert holder.stdout and holder.stdout.readline() == b"held\n"
        with pytest.raises(ConfigError, match=f"is being trained by process {holder.pid}: stop that first"):
            lock(tmp_path, patience=0.2)
        assert json.loads((tmp_path / "lock").read_text())["pid"] == holder.pid
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    held = lock(tmp_path, patience=5)
    assert json.loads((tmp_path / "lock").read_text())["pid"] == os.getpid()
    held.close()


def test_an_earlier_start_of_the_same_slurm_job_lets_go_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a node that was cut off: it holds on, but Slurm has started the job anew elsewhere."""
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_CLUSTER_NAME", "c")
    old = lock(tmp_path)
    assert is_training(tmp_path)
    monkeypatch.setenv("SLURM_JOB_ID", "8")
    assert is_training(tmp_path)
    with pytest.raises(ConfigError, match="is being trained"):
        lock(tmp_path, patience=0)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert not is_training(tmp_path)
    with lock(tmp_path, patience=0):
        monkeypatch.setenv("SLURM_RESTART_COUNT", "0")
        assert is_training(tmp_path)  # whoever looks sees the new one
    old.close()


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_without_file_locks_a_run_trains_and_says_so_unless_its_trainer_lives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: int
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", refuse)
    lock(tmp_path).close()
    assert capsys.readouterr().out.startswith(f"{tmp_path} is on a file system without locks: do not train")
    assert not is_training(tmp_path)
    alive = {"machine": machine(), "pid": os.getppid(), "started": started(os.getppid())}
    (tmp_path / "lock").write_text(json.dumps(alive))
    assert is_training(tmp_path)
    with pytest.raises(ConfigError, match=f"is being trained by process {os.getppid()}"):
        lock(tmp_path, patience=0)
    (tmp_path / "lock").write_text(json.dumps(alive | {"started": "1"}))  # its number is another process's by now
    assert not is_training(tmp_path)
