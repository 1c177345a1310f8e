"""Stop requests and hangs of whole runs: two launchers as on two nodes, `biggan train`, and a worker that stands still."""

import json
import os
import signal
import socket
import sys
import threading
from pathlib import Path

import pytest

from jobs.cli import main
from pipeline.checkpoint import format
from pipeline.runs.run_folder import RunState, read_status, write_status
from pipeline.storage.run_lock import lock
from tests.support.background import Started, biggan
from tests.support.servers import free_port
from tests.support.tiny_runs import mlflow_runs

pytestmark = pytest.mark.usefixtures("nothing_is_left")

WORKER = """
import os, sys
from jobs.cli import main
code = main()
open(f"rank{os.environ['RANK']}.code", "w").write(str(code))
sys.exit(code)
"""
BOTH = "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1,SIGUSR2"


def node(rank: int, port: int, config: str, run: Path) -> Started:
    flags = f"--use_deepspeed --num_machines 2 --machine_rank {rank} --same_network --main_process_ip 127.0.0.1"
    flags += f" --main_process_port {port} --num_processes 2 --deepspeed_multinode_launcher standard"
    flags += " --mixed_precision no --dynamo_backend no"
    environment = {"PET_SIGNALS_TO_HANDLE": BOTH, "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "60"}
    environment |= {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore::FutureWarning"}
    script = run.parent / "worker.py"
    script.write_text(WORKER)
    command = [sys.executable, "-m", "accelerate.commands.launch", *flags.split(), str(script), "train", config, f"run={run}"]
    return Started(command, run.parent, environment)


def status_of(run: Path) -> RunState:
    status = read_status(run / "status.json")
    assert status
    return status


def worker(started: Started, rank: int) -> int:
    """The process of a local rank below `started`."""
    launcher = children(started.process.pid)[0]
    return next(
        pid for pid in children(launcher) if f"\0LOCAL_RANK={rank}\0".encode() in Path(f"/proc/{pid}/environ").read_bytes()
    )


def children(pid: int) -> list[int]:
    return [int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()]


@pytest.mark.slow
@pytest.mark.timeout(900)  # three starts
def test_two_nodes_stop_then_a_rank_stands_still_then_a_signal_comes_early(endless: str, tmp_path: Path) -> None:
    run, port = tmp_path / "run", free_port()
    run.mkdir()
    (run / "STOP").touch()  # meant for an earlier start
    nodes = [node(rank, port, endless, run) for rank in (0, 1)]
    nodes[0].until("img/s")
    for _ in range(2):
        nodes[1].process.send_signal(signal.SIGTERM)
    for rank, started in enumerate(nodes):
        assert started.end() == 1  # of the launcher
        said = started.err.read_text()
        assert (tmp_path / f"rank{rank}.code").read_text() == "75", said
        assert "pipeline/training/loop.py" not in said and "SIGKILL" not in said, said
    first = status_of(run)
    assert first == RunState("stopped", first.images, 75, "SIGTERM") and first.images > 0
    assert [found.images for found in format.committed(str(run / "checkpoints"))] == [first.images]
    (found,) = mlflow_runs(run)
    assert found.info.status == "KILLED"
    assert sorted(path.name for path in (run / "system").iterdir()) == ["node00000.jsonl", "node00001.jsonl"]
    assert "system/node0/cpu_utilization_percentage" in found.data.metrics

    second = biggan(endless, run, "hang.timeout=6", "stop.grace=2")
    second.until("img/s")
    assert f"resuming at image {first.images:,} of" in second.out.read_text()
    os.kill(worker(second, 1), signal.SIGSTOP)
    assert second.end() == 70
    said = second.err.read_text()
    assert said.startswith("biggan: error: no progress for 6 s in the ") and said.count("\n") == 1, said
    assert f"stopped, or its machine gone: rank 1 on {socket.gethostname()}; the stacks are in {run}/logs/hang-rank*" in said
    (dump,) = run.glob("logs/hang-rank00000-*.txt")
    assert "all_reduce" in dump.read_text() and "loop.py" in dump.read_text()
    assert json.loads(dump.with_suffix(".json").read_bytes())["entries"]
    hung = status_of(run)
    assert (hung.state, hung.images, hung.exit_code) == ("failed", first.images, 70) and hung.message in said
    (found,) = mlflow_runs(run)
    assert found.info.status == "FAILED"  # the launcher has said so for its workers

    third = biggan(endless, run)
    third.until("starting 2 workers")
    for number in (signal.SIGUSR2, signal.SIGUSR2, signal.SIGTERM):
        third.process.send_signal(number)
    assert third.end() == 75, third.err.read_text()
    assert status_of(run) == RunState("stopped", first.images, 75, "SIGUSR2")
    assert [found.images for found in format.committed(str(run / "checkpoints"))] == [first.images]
    assert f"at image {first.images:,} of 100,000,000: the same command goes on there" in third.out.read_text()
    assert third.err.read_text() == "" and not (run / "STOP").exists()


@pytest.mark.long
def test_biggan_stop_asks_a_training_and_waits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run").mkdir()
    assert main(["stop", str(tmp_path / "run")]) == 78
    assert "is not being trained" in capsys.readouterr().err
    (tmp_path / "config.yaml").touch()
    assert main(["stop", str(tmp_path / "config.yaml")]) == 78
    assert "is not being trained" in capsys.readouterr().err
    held = lock(tmp_path / "run")
    assert main(["stop", str(tmp_path / "run")]) == 0
    assert (tmp_path / "run" / "STOP").exists()
    write_status(tmp_path / "run", RunState("stopped", 64, 75, "RUN/STOP"))
    threading.Timer(0.2, held.close).start()
    assert main(["stop", str(tmp_path / "run"), "--wait"]) == 0
    assert "stopped, 64 images" in capsys.readouterr().out
