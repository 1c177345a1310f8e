"""What the kill benchmark plans; and (slow) that killed ranks leave no trace."""

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.kill import plan
from pipeline.checkpoint import failpoints


def test_half_of_the_kills_are_at_fail_points_each_of_them_in_turn() -> None:
    for seed in range(20):
        planned = plan(40, random.Random(seed), 2.0)
        assert planned == plan(40, random.Random(seed), 2.0)
        places = [kill.place for kill in planned if kill.place]
        assert len(places) == 20 and set(places) == set(failpoints.NAMES)
        assert {kill.rank for kill in planned} == {None, 0, 1}
        few = {kill.place for kill in plan(7, random.Random(seed), 2.0) if kill.place}
        assert few == {"snapshot", "written", "reported", "retain"}
        assert all(kill.count in (1, 2) if kill.place else 0 <= kill.delay <= 2 for kill in planned)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_seven_kills_leave_no_trace() -> None:
    command = [sys.executable, "-m", "benchmarks.kill", "--kills", "7", "--seed", "0"]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["ok"] and result["kills"] == 7 and all(result["checks"].values())
