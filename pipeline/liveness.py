"""Which process trains a run, and whether it is gone.

That it is gone needs proof: the same kernel and process namespace has no such process any more, or the same Slurm cluster
no such job. What another machine does cannot be seen from here.
"""

import ctypes
import os
import re
import shutil
import signal
import socket
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field
from typing_extensions import TypedDict

from pipeline import variables

Verdict = Literal["alive", "gone", "unknown"]
_Number = Annotated[str, Field(pattern=r"^\d{1,9}$")]


class Process(TypedDict, total=False):
    """What `this_process` says of a process, as a file may have it."""

    machine: str
    host: str
    pid: Annotated[int, Field(ge=0, lt=1 << 31)] | _Number
    started: str
    job_id: Annotated[str, Field(pattern=r"^\w[\w.+-]{0,63}$")]
    cluster_name: str
    restart_count: _Number


def machine() -> str:
    """Kernel's boot and process namespace, to which a pid belongs. Of machines and containers that are up, each has its own."""
    namespace = os.readlink("/proc/self/ns/pid") if Path("/proc/self/ns/pid").exists() else ""
    boot = Path("/proc/sys/kernel/random/boot_id")
    return f"{boot.read_text().strip() if boot.exists() else socket.gethostname()} {namespace}"


def started(pid: int) -> str:
    """The kernel's start time of a process; empty if there is none, or only its exit code is left."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] == "Z" else fields[19]


def this_process() -> dict[str, str]:
    """What identifies this process: its machine, with a name for people, pid, start time; and its Slurm job, if any."""
    pid = os.getpid()
    return {"machine": machine(), "host": socket.gethostname(), "pid": str(pid), "started": started(pid), **job()}


def job() -> dict[str, str]:
    """The Slurm job of this process and how often it has been requeued; empty outside of one."""
    if "SLURM_JOB_ID" not in os.environ:
        return {}
    names = {key: f"SLURM_{key.upper()}" for key in ("job_id", "cluster_name", "restart_count")}
    return {"restart_count": "0"} | {key: os.environ[name] for key, name in names.items() if name in os.environ}


def superseded(holder: Mapping[str, object]) -> bool:
    """Whether `holder`, described with its `job()`, belongs to an earlier start of this process's Slurm job.

    Slurm requeues a job when it has given its nodes up for lost: what still runs on one that is only cut off has been
    replaced by this start, however alive it looks.
    """
    mine = job()
    same = all(mine.get(key) and mine[key] == holder.get(key) for key in ("job_id", "cluster_name"))
    return same and int(str(holder.get("restart_count", 0))) < int(mine["restart_count"])


def verdict(process: Process | dict[str, str]) -> Verdict:
    """Return whether a process that `this_process` has described still lives."""
    if process.get("machine") == machine():
        return "alive" if started(int(process.get("pid", 0))) == process.get("started") != "" else "gone"
    if "job_id" in process and (cluster := process.get("cluster_name")) and cluster == _slurm_cluster():
        return _slurm_verdict(process["job_id"])
    return "unknown"


def _slurm_cluster() -> str | None:
    """The name of the Slurm cluster that this machine belongs to; None without one, or if it does not answer."""
    if not shutil.which("scontrol"):
        return None
    done = subprocess.run(["scontrol", "show", "config"], capture_output=True, text=True, check=False, timeout=60)
    found = re.search(r"^ClusterName\s*=\s*(\S+)", done.stdout, re.M)
    return found[1] if found else None


def _slurm_verdict(job: str) -> Verdict:
    """A job that waits, runs or is being requeued counts as alive."""
    done = subprocess.run(["squeue", "-h", "-j", job, "-o", "%T"], capture_output=True, text=True, check=False, timeout=60)
    if done.returncode == 0:
        return "alive" if done.stdout.strip() else "gone"
    return "gone" if "Invalid job id" in done.stderr else "unknown"


def die_with_parent() -> None:
    """Ask Linux to kill this process when its parent is gone: else a killed launcher leaves workers that go on writing."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "prctl"):
        pr_set_pdeathsig = 1
        libc.prctl(pr_set_pdeathsig, signal.SIGKILL)


def outlived_launcher() -> bool:
    """Whether the launcher died before this worker could ask to die with it: its parent is then no child of `launch`."""
    try:
        status = Path(f"/proc/{os.getppid()}/stat").read_text()
    except FileNotFoundError:
        return Path("/proc/self").exists()
    grandparent = status.rpartition(")")[2].split()[1]
    return os.environ.get(variables.TRAIN_PID, grandparent) != grandparent
