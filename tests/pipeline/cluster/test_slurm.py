"""What Slurm's commands say, read. The commands themselves run in tests/slurm."""

import pytest

from pipeline.cluster.slurm import SlurmJob, _last_line, _minutes, outside, refuse_short
from pipeline.errors import ConfigError


@pytest.mark.parametrize(
    ("time", "minutes"),
    [
        ("90", 90),
        ("90:30", 90.5),
        ("2:00:00", 120),
        ("1-0", 1440),
        ("1-12:30", 2190),
        ("1-12:30:30", 2190.5),
        ("infinite", float("inf")),
        ("UNLIMITED", float("inf")),
    ],
)
def test_times_as_slurm_writes_them(time: str, minutes: float) -> None:
    assert _minutes(time) == minutes


@pytest.mark.parametrize(
    ("time", "signal", "least"),
    [
        ("4", "#SBATCH --open-mode=append\n#SBATCH --signal=B:USR1@300\nrun=\n", 10),
        ("00:09:59", "#SBATCH --signal=B:USR1@300\n", 10),
        ("00:10:00", "#SBATCH --signal=B:USR1@300\n", None),
        ("7", "B:USR1@110", None),
        ("6", "B:USR1@110", 7),
        ("20", "B:USR1@1800", 35),
        ("5", "USR1", 6),
        ("6", "10@60", None),
        ("UNLIMITED", "B:USR1@300", None),
    ],
)
def test_a_time_limit_leaves_time_to_train(time: str, signal: str, least: int | None) -> None:
    if least is None:
        return refuse_short(time, signal)
    with pytest.raises(ConfigError, match=rf"the time limit {time} leaves no time to train: .* pass --time {least} or more"):
        refuse_short(time, signal)
    return refuse_short(str(least), signal)


def test_a_job_inherits_nothing_of_the_allocation_in_which_it_is_submitted() -> None:
    inside = {
        "SLURM_JOB_ID": "7",
        "SLURM_NTASKS_PER_NODE": "4",
        "SLURM_MEM_PER_CPU": "1",
        "SRUN_CPUS_PER_TASK": "2",
        "PMI_RANK": "0",
    }
    stays = {"SLURM_CONF": "/etc/slurm.conf", "SBATCH_PARTITION": "gpu", "PATH": "/bin", "SLURMY": "1"}
    assert outside(inside | stays) == stays


def test_of_several_lines_the_last_says_what_is_wrong() -> None:
    said = "sbatch: error: Memory specification can not be satisfied\nsbatch: error: Batch job submission failed: Invalid qos"
    assert _last_line(said) == "Invalid qos"
    assert (
        _last_line("allocation failure: Invalid partition name specified\n")
        == "allocation failure: Invalid partition name specified"
    )
    assert _last_line("slurm_load_jobs error: Unable to contact slurm controller") == "Unable to contact slurm controller"
    assert _last_line("") == ""


def test_a_job_for_people() -> None:
    assert (
        str(SlurmJob(id="12", state="RUNNING", reason="None", nodes="n[1-2]", restarts=1, script=""))
        == "job 12, RUNNING on n[1-2], 1 restart"
    )
    assert (
        str(SlurmJob(id="12", state="PENDING", reason="Resources", nodes="", restarts=0, script=""))
        == "job 12, PENDING (Resources)"
    )
    assert (
        SlurmJob(id="12", state="PENDING", reason="", nodes="", restarts=0, script="").queued
        and not SlurmJob(id="12", state="TIMEOUT", reason="", nodes="", restarts=0, script="").queued
    )
