"""Slurm, by the commands that its users have: sbatch, scontrol, squeue, sinfo, scancel."""

import math
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline import exit_codes
from pipeline.errors import ConfigError, UserError

_ENDED = ("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "TIMEOUT")


class SlurmError(UserError):
    """Slurm does not answer: trying again may help (`EX_UNAVAILABLE`)."""

    exit_code = exit_codes.NODES.number


@dataclass(frozen=True, kw_only=True)
class SlurmJob:
    """What Slurm knows of a job."""

    id: str
    state: str
    """As squeue has it: PENDING, RUNNING, COMPLETED, ..."""
    reason: str
    """Why it waits, or how it ended; `None` without one."""
    nodes: str
    restarts: int
    script: str

    @property
    def queued(self) -> bool:
        """Whether it waits or runs, so that another would be one too many."""
        return self.state not in _ENDED

    def __str__(self) -> str:
        """For people: `job 12, RUNNING on n[1-2], 1 restart`."""
        reason = f" ({self.reason})" if self.reason not in ("None", "") else ""
        nodes = f" on {self.nodes}" if self.nodes not in ("(null)", "") else ""
        restarts = f", {self.restarts} restart{'s' * (self.restarts > 1)}" if self.restarts else ""
        return f"job {self.id}, {self.state}{reason}{nodes}{restarts}"


def is_here() -> bool:
    """Whether this machine has Slurm's commands."""
    return shutil.which("sbatch") is not None


def require() -> None:
    """Raises ConfigError where there is no Slurm."""
    if not is_here():
        raise ConfigError("there is no sbatch here: run this on a login node of the Slurm cluster")


def find(job_id: str) -> SlurmJob | None:
    """The job, or None if Slurm no longer knows it: some minutes after its end. Raises SlurmError."""
    if not is_here():
        raise SlurmError("Slurm's commands are not here: run this on a login node of the cluster")
    done = _run(["scontrol", "-o", "show", "job", job_id])
    if done.returncode:
        if "Invalid job id" in done.stderr:
            return None
        raise SlurmError(f"Slurm does not answer: {_last_line(done.stderr)}")
    said = dict(re.findall(r"(\S+?)=(\S*)", done.stdout.splitlines()[0]))
    restarts = int(said.get("Restarts", 0))
    return SlurmJob(
        id=job_id,
        state=said["JobState"],
        reason=said["Reason"],
        nodes=said.get("NodeList", ""),
        restarts=restarts,
        script=said.get("Command", ""),
    )


def outside(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the environment without what Slurm has set for the job or step of this shell: the next job would inherit it."""
    return {name: value for name, value in environ.items() if name in _ANYWHERE or not _INSIDE.match(name)}


_INSIDE = re.compile(r"SLURM_|SLURMD_|SRUN_|PMI_|PMIX_")
_ANYWHERE = ("SLURM_CONF", "SLURM_CLUSTERS", "SLURM_JWT", "SLURM_TIME_FORMAT")


def check(request: Sequence[str], env: Mapping[str, str], script: str) -> str:
    """What `sbatch --test-only` says of options and script: when and where it would start; `script` is the script's text.

    Raises ConfigError, also for a time limit that leaves a start no time.
    """
    done = _run(["sbatch", "--test-only", *request], env)
    if done.returncode:
        raise _refused(done.stderr)
    said = _last_line(done.stderr)
    time = next((option.partition("=")[2] for option in request if option.startswith("--time=")), env.get("SBATCH_TIMELIMIT"))
    # By default Slurm takes a job that its partition would never let run so long, and lets it wait for ever.
    limits = _run(["sinfo", "--noheader", "--format=%l %L", f"--partition={said.rpartition(' ')[2]}"]).stdout.split()
    limit, default = limits[:2] if len(limits) > 1 else ("UNLIMITED", "n/a")
    if time and _minutes(time) > _minutes(limit):
        raise _refused(f"--time={time} is more than its partition allows")
    refuse_short(time or (limit if default == "n/a" else default), env.get("SBATCH_SIGNAL") or script)
    return said


def refuse_short(time: str, signal: str) -> None:
    """Raises ConfigError if a time limit leaves a start less than `START` before Slurm sends the signal that ends it.

    `signal` is `B:USR1@300`, or the text of a script with `--signal=B:USR1@300`.
    """
    found = re.search(r"(?:^|--signal=)(?:[RB]*:)?\w+@(\d+)", signal, re.MULTILINE)
    lead = int(found[1]) if found else 60  # Slurm's default
    least = math.ceil((lead + START) / 60)
    if _minutes(time) < least:
        raise ConfigError(
            f"the time limit {time} leaves no time to train: each start is told to save {lead} s before it, and needs minutes "
            f"to begin; pass --time {least} or more, or set the variable SBATCH_SIGNAL=B:USR1@SECONDS to fewer"
        )


START = 300
"""Seconds that a start should have before it is told to save: the roll call, imports and the first update take minutes."""


def _minutes(time: str) -> float:
    """Of a time as Slurm writes it: minutes, minutes:seconds, hours:minutes:seconds, days-hours and so on."""
    days, dash, rest = time.rpartition("-")
    parts = [int(part) for part in rest.split(":") if part.isdigit()]
    if not parts:
        return float("inf")  # infinite, UNLIMITED
    if not dash and len(parts) < 3:
        parts = [0, *parts]
    hours, minutes, seconds = [*parts, 0, 0][:3]
    return int(days or 0) * 1440 + hours * 60 + minutes + seconds / 60


def submit(request: Sequence[str], env: Mapping[str, str]) -> str:
    """Submit options, script and its arguments; the job's id."""
    done = _run(["sbatch", "--parsable", *request], env)
    if done.returncode:
        raise _refused(done.stderr)
    return done.stdout.strip().partition(";")[0]


def tell(job_id: str, signal: str) -> None:
    """Signal a running job's batch script, and not what it has started. Raises SlurmError."""
    done = _run(["scancel", "--batch", f"--signal={signal}", job_id])
    if done.returncode:
        raise SlurmError(f"scancel --batch --signal={signal} {job_id}: {_last_line(done.stderr)}")


def cancel(job_id: str) -> None:
    """Take a job from the queue. Raises SlurmError."""
    done = _run(["scancel", job_id])
    if done.returncode:
        raise SlurmError(f"scancel {job_id}: {_last_line(done.stderr)}")


def _refused(said: str) -> UserError:
    """Of what sbatch has said: something wrong with the request, or with the way to Slurm."""
    line = _last_line(said)
    if "Unable to contact" in said or "Connection refused" in said or "timed out" in said:
        return SlurmError(f"Slurm does not answer: {line}")
    have = _run(["sinfo", "--noheader", "--format=%R: %D nodes of %c CPUs, %m MB, %G, at most %l"]).stdout.split("\n")
    partitions = "; ".join(line for line in have if line)
    return ConfigError(f"Slurm refuses this request: {line} (partitions here: {partitions.replace(', (null)', '')})")


def _last_line(said: str) -> str:
    lines = [line for line in said.strip().splitlines() if line]
    return (
        re.sub(r"^(sbatch|scontrol|scancel|slurm_\w+)?:? ?(error: )*(Batch job submission failed: )?", "", lines[-1])
        if lines
        else ""
    )


def _run(command: Sequence[str], env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, env=dict(env) if env else None, capture_output=True, text=True, check=False, timeout=120)
    except subprocess.TimeoutExpired:
        raise SlurmError(f"{command[0]} does not answer: Slurm's controller may be down") from None
