"""The batch scripts in slurm/, by hand with plain sbatch: what follows how a start ends.

`biggan` is a stand-in that ends as it is told. Training itself is in test_training.py.
"""

import os
import re
import sys
from pathlib import Path

import pytest

from tests.support.slurm import Slurm

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

ROOT = Path(__file__).parent.parent.parent

# Line N of PLAN is what start N does on each node: `exit CODE`, say.
BIGGAN = """\
#!/usr/bin/env bash
for argument; do [[ $argument != run=* ]] || run=${argument#run=}; done
status() {
    printf '{"state": "%s", "images": 64, "exit_code": %s, "message": "%s"}' "$@" > "$run/.$SLURM_NODEID.tmp"
    mv "$run/.$SLURM_NODEID.tmp" "$run/status.json"
}
echo "node $SLURM_NODEID of $SLURM_JOB_NODELIST: $*"
eval "$(sed -n "$((${SLURM_RESTART_COUNT:-0} + 1))p" "$PLAN")"
"""


class Site:
    """A folder with the stand-in, and sbatch as a user types it."""

    def __init__(self, slurm: Slurm, folder: Path) -> None:
        self.slurm, self.folder, self.run = slurm, folder, folder / "run"
        self.run.mkdir()
        (folder / "bin").mkdir()
        (folder / "bin" / "biggan").write_text(BIGGAN)
        (folder / "bin" / "biggan").chmod(0o755)
        (folder / "site.sh").write_text(f"export PATH={folder}/bin:{Path(sys.executable).parent}:$PATH BIGGAN_CRASHES=1\n")

    def sbatch(self, plan: list[str], *arguments: str, script: str = "train", options: tuple[str, ...] = ()) -> str:
        (self.folder / "plan").write_text("\n".join(plan) + "\n")
        for name, value in {"PLAN": "plan", "BIGGAN_SITE": "site.sh"}.items():
            os.environ[name] = str(self.folder / value)
        output = f"--output={self.folder}/%j.log"
        command = ["sbatch", "--parsable", output, *options, f"slurm/{script}.sbatch", *arguments]
        return self.slurm.run(*command, cwd=ROOT).strip()

    def train(self, plan: list[str], *options: str) -> dict[str, str]:
        job = self.sbatch(plan, "tiny", f"run={self.run}", "seed=3", options=options)
        return self.slurm.until(job, "COMPLETED", "FAILED", seconds=150)


@pytest.fixture
def site(slurm: Slurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    monkeypatch.setenv("PLAN", "")
    monkeypatch.setenv("BIGGAN_SITE", "")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return Site(slurm, tmp_path)


def test_stopped_then_done_with_every_node_told_the_same(site: Site) -> None:
    # The first to leave ends the other, which shall have begun by then.
    leave = 'touch "$PLAN.$SLURM_NODEID"; until [[ -e $PLAN.0 && -e $PLAN.1 ]]; do sleep 0.1; done; ((SLURM_NODEID)) || sleep 2'
    job = site.train([f"status stopped 75 SIGUSR1; {leave}; exit 75", "exit 0"], "--nodes=2")
    said = site.slurm.said(job)
    assert (job["JobState"], job["Restarts"], job["ExitCode"]) == ("COMPLETED", "1", "0:0"), said
    nodes = re.findall(r"node (\d) of n\[1-2\]: node tiny run=\S+ seed=3", said)
    assert sorted(nodes) == ["0", "0", "1", "1"] and "exit code 75, again: stopped by SIGUSR1" in said


def test_what_a_start_does_not_mend_fails_with_its_code(site: Site) -> None:
    job = site.train(["status failed 78 typo; ((SLURM_NODEID)) || sleep 60; exit 78"], "--nodes=2")
    assert (job["JobState"], job["Restarts"], job["ExitCode"]) == ("FAILED", "0", "78:0"), site.slurm.said(job)


def test_a_stop_that_a_person_has_asked_for_is_the_end(site: Site) -> None:
    job = site.train(["status stopped 75 RUN/STOP; exit 75"])
    assert (job["JobState"], job["Restarts"], job["ExitCode"]) == ("FAILED", "0", "75:0"), site.slurm.said(job)


def test_crashes_are_tried_again_but_not_for_ever(site: Site) -> None:
    job = site.train(["kill -KILL $$"] * 9)
    assert (job["JobState"], job["Restarts"], job["ExitCode"]) == ("FAILED", "1", "137:0"), site.slurm.said(job)
    assert "crashed 2 times without a checkpoint past 0 images" in site.slurm.said(job)


def test_a_time_limit_that_leaves_no_time_is_refused(site: Site) -> None:
    job = site.train(["exit 0"], "--time=4")
    assert (job["JobState"], job["ExitCode"]) == ("FAILED", "78:0")
    assert "the time limit 4:00 leaves no time to train" in site.slurm.said(job)
    assert site.train(["exit 0"], "--time=10")["JobState"] == "COMPLETED"


def test_a_job_without_run_says_so(site: Site) -> None:
    job = site.slurm.until(site.sbatch(["exit 0"], "tiny"), "FAILED")
    assert job["ExitCode"] == "78:0" and "run= is missing" in site.slurm.said(job)


def test_a_sweep_is_a_run_for_each_task(site: Site) -> None:
    (site.folder / "rates.txt").write_text("optim.g_lr=1e-4 optim.d_lr=4e-4\nbatch.d_steps=1\n")
    (site.folder / "site.sh").open("a").write(f"export BIGGAN_SWEEP={site.folder}/rates.txt\n")
    os.environ["BIGGAN_SWEEP"] = str(site.folder / "rates.txt")
    try:
        array = site.sbatch(["exit 0"], "tiny", f"run={site.run}", script="sweep", options=("--array=1-2",))
    finally:
        del os.environ["BIGGAN_SWEEP"]
    jobs = [site.slurm.until(f"{array}_{task}", "COMPLETED") for task in (1, 2)]
    said = "".join(site.slurm.said(job) for job in jobs)
    assert f"node tiny run={site.run}/1 optim.g_lr=1e-4 optim.d_lr=4e-4" in said
    assert f"node tiny run={site.run}/2 batch.d_steps=1" in said


def test_parts_of_a_source_are_packed_side_by_side(site: Site) -> None:
    arguments = ("s3://bucket/all", "--resolution", "64", "--", "parts/a.zip", "parts/b.zip")
    array = site.sbatch(["exit 0"], *arguments, script="shard", options=("--array=0-1",))
    said = [site.slurm.said(site.slurm.until(f"{array}_{task}", "COMPLETED")) for task in (0, 1)]
    assert "shard parts/a.zip s3://bucket/all/a --resolution 64" in said[0]
    assert "shard parts/b.zip s3://bucket/all/b --resolution 64" in said[1]
    wrong = site.slurm.until(site.sbatch(["exit 0"], *arguments, script="shard", options=("--array=0",)), "FAILED")
    assert "2 parts but --array has 1 tasks: type --array=0-1" in site.slurm.said(wrong)


def test_the_chain_goes_on_after_a_run_that_is_done_and_ends_with_one_that_is_not(site: Site) -> None:
    for plan, states in (["exit 0"], ("COMPLETED", "COMPLETED")), (["exit 78"], ("FAILED", "CANCELLED")):
        first = site.sbatch(plan, "tiny", f"run={site.run}")
        behind = (f"--dependency=afterok:{first}", "--kill-on-invalid-dep=yes")
        second = site.sbatch(plan, str(site.run), "--samples", "64", script="evaluate", options=behind)
        assert (site.slurm.until(first)["JobState"], site.slurm.until(second)["JobState"]) == states
