"""What Slurm's commands say, read. The commands themselves run in tests/slurm."""

import pytest

from pipeline.slurm import Job, _last_line, _minutes


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
    assert str(Job("12", "RUNNING", "None", "n[1-2]", 1, "")) == "job 12, RUNNING on n[1-2], 1 restart"
    assert str(Job("12", "PENDING", "Resources", "", 0, "")) == "job 12, PENDING (Resources)"
    assert Job("12", "PENDING", "", "", 0, "").queued and not Job("12", "TIMEOUT", "", "", 0, "").queued
