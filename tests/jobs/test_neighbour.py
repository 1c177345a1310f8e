"""Two nodes train while a neighbour speaks to all their ports: the run ends as if he were not there."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.runs.run_folder import read_status
from tests.support.network_neighbour import Neighbour, Recorder
from tests.support.servers import free_port
from tests.support.tiny_runs import tensors_of


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_neighbour_changes_nothing(tiny: str, whole: Path, tmp_path: Path) -> None:
    port, run = free_port(), tmp_path / "run"
    recorder = Recorder(port)  # through which node 1 reaches node 0
    nodes = []
    logs = [tmp_path / f"{rank}.out" for rank in (0, 1)]
    for rank, main_port in enumerate((port, recorder.port)):
        command = [sys.executable, "-m", "jobs.cli", "node", tiny, "processes=1", f"run={run}", "tracking.mode=off"]
        command += ["--nodes", "2", "--node-rank", str(rank), "--main-address", "127.0.0.1", "--main-port", str(main_port)]
        with open(logs[rank], "wb") as log:
            nodes.append(subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=log, stderr=log))
    neighbour = Neighbour([node.pid for node in nodes], recorder)
    try:
        codes = [node.wait(300) for node in nodes]
    finally:
        neighbour.stop()
        for node in nodes:
            node.kill()
    said = "\n".join(log.read_text() for log in logs)
    assert codes == [0, 0], said
    status = read_status(run / "status.json")
    assert status and status.state == "finished" and "rm -rf" not in said
    assert tensors_of(run) == tensors_of(whole)
    # He did come: to many ports, in each of his ways, and with what he had recorded.
    assert len(neighbour.ports) > 5 and min(neighbour.done.values()) > 2 and len(neighbour.done) == 6
    assert any(len(said) > 1000 for said in recorder.said)
    assert said.count("did not know this job's token and was closed") == 1
