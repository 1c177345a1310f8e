"""`biggan node` on this machine as two: with one folder, and with a disk each; real processes, real rendezvous.

That two nodes of two processes make what one of four makes is shown on a real Slurm, in tests/slurm/test_training.py.
"""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import psutil
import pytest

from pipeline import variables
from pipeline.checkpoint import format
from pipeline.runs.run_folder import read_identity, read_status
from tests.support.background import wait_for
from tests.support.servers import free_port
from tests.support.tiny_runs import tensors_of

TOKEN = "0123456789abcdef" * 2

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


class Nodes:
    """`biggan node` started once for each folder in which it works."""

    def __init__(
        self,
        tiny: str,
        folders: list[Path],
        *overrides: str,
        own: dict[int, list[str]] | None = None,
        tokens: Sequence[str] = (),
    ):
        place = ["--nodes", str(len(folders)), "--main-address", "127.0.0.1", "--main-port", str(free_port())]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}  # as each of two processes on one machine of two cores has
        self.processes, self.logs = [], [folder / f"node{rank}.out" for rank, folder in enumerate(folders)]
        for rank, folder in enumerate(folders):
            folder.mkdir(parents=True, exist_ok=True)
            command = [sys.executable, "-m", "jobs.cli", "node", tiny, "processes=1", *overrides, *(own or {}).get(rank, [])]
            command[5:5] = [*place, "--node-rank", str(rank), "--patience", "120"]
            with open(self.logs[rank], "ab") as log:
                token = {variables.TOKEN: tokens[rank]} if tokens else {}
                self.processes.append(subprocess.Popen(command, cwd=folder, env=environment | token, stdout=log, stderr=log))

    def codes(self, timeout: float = 240) -> list[int]:
        try:
            return [process.wait(timeout) for process in self.processes]
        finally:
            for process in self.processes:
                process.kill()

    def said(self) -> str:
        return "\n".join(log.read_text() for log in self.logs)


def test_nodes_with_disks_of_their_own_stop_together_and_others_go_on(tiny: str, whole: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    keys = ("run=run", f"checkpoint.uri={store}")
    first = [tmp_path / "a0", tmp_path / "a1"]
    nodes = Nodes(tiny, first, *keys, tokens=[TOKEN, TOKEN])
    wait_for(lambda: format.newest(str(store)) is not None)
    family = [psutil.Process(nodes.processes[0].pid), *psutil.Process(nodes.processes[0].pid).children(recursive=True)]
    assert len(family) > 2 and not [process for process in family if TOKEN in " ".join(process.cmdline())]
    nodes.processes[1].send_signal(signal.SIGTERM)
    assert nodes.codes() == [75, 75], nodes.said()
    assert nodes.said().count("stopped by SIGTERM at image") == 2
    stopped = format.newest(str(store))
    assert stopped and stopped.images < 256

    second = [tmp_path / "b0", tmp_path / "b1"]
    nodes = Nodes(tiny, second, *keys, tokens=[TOKEN, TOKEN])
    assert nodes.codes() == [0, 0], nodes.said()
    assert len({read_identity(folder / "run")["uid"] for folder in first + second}) == 1
    assert tensors_of(Path("run"), store) == tensors_of(whole)
    assert len(list((store / "logs").iterdir())) == 4
    assert not [file for file in tmp_path.rglob("*") if file.is_file() and TOKEN.encode() in file.read_bytes()]


def test_nodes_that_were_started_differently_train_nothing(tiny: str, tmp_path: Path) -> None:
    nodes = Nodes(tiny, [tmp_path, tmp_path], f"run={tmp_path}/run", own={1: ["seed=5"]})
    assert nodes.codes() == [78, 78], nodes.said()
    assert "has another configuration than node 0" in nodes.logs[0].read_text()


def test_nodes_with_other_tokens_are_told_which_variable_to_set(tiny: str, tmp_path: Path) -> None:
    nodes = Nodes(tiny, [tmp_path, tmp_path], f"run={tmp_path}/run", own={0: ["--patience", "40"]}, tokens=[TOKEN, TOKEN[::-1]])
    assert nodes.codes() == [69, 78], nodes.said()
    assert (
        f"has another token than this node: set the variable {variables.TOKEN} to the same on all" in nodes.logs[1].read_text()
    )
    main = nodes.logs[0].read_text()
    assert "did not know this job's token and was closed; more are only counted" in main
    assert re.search(r"\d+ connections to port \d+ did not know", main)
    assert "biggan: error: of 2 nodes, 1 did not come within 40 s" in main
    assert TOKEN not in main


def test_a_node_that_dies_ends_the_others(tiny: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    nodes = Nodes(tiny, [tmp_path, tmp_path], f"run={run}", "total_images=100000")
    wait_for(lambda: format.newest(str(run / "checkpoints")) is not None)
    nodes.processes[1].kill()
    assert nodes.codes() == [1, -signal.SIGKILL]
    assert "biggan: error: another worker ended first" in nodes.said()
    assert "the same command resumes from the last checkpoint" in nodes.said()
    status = read_status(run / "status.json")
    assert status and status.state == "running"  # as after any crash
