"""What the kill benchmark does before it kills; and (slow) that a killed run leaves no trace."""

import json
import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from benchmarks.kill_command import BATCH, TARGETS, TOTAL, plan, victims
from benchmarks.support.attempts import Process, processes_of
from pipeline.liveness import started


@pytest.mark.parametrize("kills", [1, 3, 7, 30])
def test_kills_come_before_the_end_and_of_every_kind(kills: int) -> None:
    for seed in range(50):
        planned = plan(kills, random.Random(seed), 10.0, 0.1)
        assert len(planned) == kills and planned == plan(kills, random.Random(seed), 10.0, 0.1)
        counts = Counter(kill.target for kill in planned)
        assert max(counts.values()) - min(counts.get(target, 0) for target in TARGETS) <= 1
        # Three updates from the end at the latest: a moment later the run may have finished.
        assert all(kill.images is None or kill.images <= TOTAL - 3 * BATCH for kill in planned)


def test_a_process_and_its_descendants() -> None:
    shell = subprocess.Popen(["sh", "-c", "sleep 60 & sleep 61 & echo up; wait"], stdout=subprocess.PIPE)
    try:
        assert shell.stdout and shell.stdout.readline() == b"up\n"
        wanted = {("sh", "-c"), ("sleep", "60"), ("sleep", "61")}
        deadline = time.monotonic() + 30  # forked children are shells until they have become sleeps
        tree = processes_of(shell.pid)
        while {tuple(command[:2]) for command in tree.values()} != wanted:
            assert time.monotonic() < deadline, tree
            tree = processes_of(shell.pid)
        # Nothing of a launcher or a worker here, so whatever is asked for, everything goes.
        assert victims(shell.pid, "worker", random.Random(0)) == ("everything", list(tree))
        there = [Process(pid, started(pid)) for pid in tree]
        assert all(process.alive() for process in there)
        assert not Process(shell.pid, "1").alive()  # a later process with the same id
    finally:
        for pid in processes_of(shell.pid):
            subprocess.run(["kill", "-9", str(pid)], check=True)
        shell.wait(10)
    assert not there[0].alive()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_three_kills_leave_no_trace() -> None:
    command = [sys.executable, "-m", "benchmarks.kill_command", "--kills", "3", "--seed", "0"]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["ok"] and result["kills"] == 3 and all(result["checks"].values())
