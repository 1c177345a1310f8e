"""`BIGGAN_DOCTOR=1`: the real doctor as the first step of slurm/train.sbatch. Training is a stand-in."""

import os
import sys
from pathlib import Path

import pytest

from tests.support.slurm import Slurm

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.timeout(600)]

ROOT = Path(__file__).parent.parent.parent
BIGGAN = f"""\
#!/usr/bin/env bash
[[ $1 == doctor ]] && exec {sys.executable} -m jobs.cli "$@"
echo "node $SLURM_NODEID of $SLURM_JOB_NODELIST trains"
"""


def train(slurm: Slurm, folder: Path, shards: Path, fault: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The job at its end, of two of the three nodes."""
    (folder / "bin").mkdir()
    (folder / "bin" / "biggan").write_text(BIGGAN)
    (folder / "bin" / "biggan").chmod(0o755)
    site = f"export PATH={folder}/bin:{Path(sys.executable).parent}:$PATH BIGGAN_DOCTOR=1\n"
    (folder / "site.sh").write_text(site)
    for name, value in {"BIGGAN_SITE": str(folder / "site.sh"), "BIGGAN_NODE_FAULT": fault, "PYTHONPATH": str(ROOT)}.items():
        monkeypatch.setitem(os.environ, name, value)
    command = ["sbatch", "--parsable", "--nodes=2", f"--output={folder}/%j.log", "slurm/train.sbatch"]
    arguments = ["cifar10", f"run={folder}/run", f"data.uri={shards}", "tracking.mode=off"]
    return slurm.until(slurm.run(*command, *arguments, cwd=ROOT).strip(), seconds=400)


def test_a_bad_node_is_excluded_and_the_job_runs_on_others(
    slurm: Slurm, tmp_path: Path, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = train(slurm, tmp_path, shards, "n2:silent:1", monkeypatch)
    said = slurm.said(job)
    assert (job["JobState"], job["Restarts"], job["ExcNodeList"], job["NodeList"]) == ("COMPLETED", "1", "n2", "n[1,3]"), said
    assert "leave out: node 1 (n2)" in said and "all 2 nodes are well" in said
    assert "node 0 of n[1,3] trains" in said and "of n[1-2] trains" not in said


def test_what_no_other_node_mends_fails_the_job(
    slurm: Slurm, tmp_path: Path, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = train(slurm, tmp_path, shards, "n2:clock:12", monkeypatch)  # two clocks: nobody knows which is right
    said = slurm.said(job)
    assert (job["JobState"], job["ExitCode"], job["Restarts"]) == ("FAILED", "78:0", "0"), said
    assert "12.0 s apart" in said and "trains" not in said
