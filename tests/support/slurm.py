"""A real Slurm on the machines of `tests.support.nodes`: its own munge, controller here, a slurmd on each node.

Nothing of a Slurm that this machine may have is touched: configuration, keys, state and logs are in one folder.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from tests.support.nodes import Nodes, until

PACKAGES = ("slurmctld", "slurmd", "slurm-client", "munge", "iproute2", "util-linux", "procps")
CPUS = 8
"""Of each node, whatever this machine has; as many GPUs."""
ENDED = frozenset(["BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "TIMEOUT"])

_FREEZER = Path("/sys/fs/cgroup/freezer")

# Short times, where Slurm's own are made for machines that take minutes to boot. PREEMPT and REQUEUE as sites have them.
_CONF = """\
ClusterName={name}
SlurmctldHost={host}({address})
SlurmctldPort={port}
SlurmdPort={node_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/{proctrack}
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
PropagateResourceLimits=NONE
JobRequeue=1
ReturnToService=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SchedulerParameters=batch_sched_delay=0,sched_min_interval=100000,bf_interval=2
KillWait={kill_wait}
SlurmdTimeout=10
MinJobAge=86400
MaxArraySize=100
GresTypes=gpu
{nodes}
PartitionName=main Nodes=ALL Default=YES PriorityTier=10 MaxTime=24:00:00
PartitionName=urgent Nodes=ALL PriorityTier=20 MaxTime=24:00:00
"""


def install() -> None:
    """Install what is missing of Slurm, where that is Debian and this is root. Fails, rather than skips, if it cannot."""
    if all(shutil.which(name, path=_path()) for name in ("slurmctld", "slurmd", "sbatch", "munged")):
        return
    apt = ["apt-get", "-qq", "-y", "-o", "DPkg::Lock::Timeout=300"]
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    for command in (["update"], ["install", "--no-install-recommends", *PACKAGES]):
        subprocess.run([*apt, *command], env=environment, stdout=subprocess.DEVNULL, check=True, timeout=600)


def _path() -> str:
    return os.environ["PATH"] + ":/usr/sbin:/sbin"


class Slurm:
    """A running cluster. Its commands work in any process that has `env`."""

    def __init__(self, folder: Path, nodes: Nodes, freezer: Path | None) -> None:
        self.folder, self.nodes = folder, nodes
        self.env = {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": _path()}
        self._freezer = freezer

    def run(self, *command: str, check: bool = True, cwd: Path | None = None) -> str:
        """What one of Slurm's commands says on stdout."""
        done = subprocess.run(
            command, env=os.environ | self.env, cwd=cwd, capture_output=True, text=True, check=False, timeout=60
        )
        assert not check or done.returncode == 0, f"{' '.join(command)}: {done.stdout}{done.stderr}"
        return done.stdout

    def job(self, job_id: str | int) -> dict[str, str]:
        """What `scontrol show job` says of a job, of an array's the first."""
        line = self.run("scontrol", "-o", "show", "job", str(job_id)).splitlines()[0]
        return dict(re.findall(r"(\S+?)=(\S*)", line))

    def until(self, job_id: str | int, *states: str, seconds: float = 120) -> dict[str, str]:
        """The job once it is in one of `states` (default: ended). Fails if it ends in another, or takes longer."""
        wanted = set(states) or ENDED

        def reached() -> dict[str, str] | None:
            job = self.job(job_id)
            state = job["JobState"]
            assert state in wanted or state not in ENDED, f"job {job_id} is {state}: {job}\n{self.said(job)}"
            return job if state in wanted else None

        return until(reached, seconds, f"job {job_id} is {' or '.join(sorted(wanted))}", every=0.2)

    def said(self, job: Mapping[str, str]) -> str:
        """The end of what a job has written."""
        path = Path(job.get("StdOut", ""))
        return "".join(path.read_text(errors="replace").splitlines(keepends=True)[-60:]) if path.is_file() else ""

    def settle(self, seconds: float = 90) -> None:
        """Return when no job is left and every node is idle: what is still completing makes the next job wait."""
        self.run("scancel", "--user=root", check=False)
        for node in self.nodes:
            if not node.pid:
                self.boot(node.name)

        def idle() -> bool:
            states = self.run("sinfo", "-h", "-N", "-o", "%N %T").split("\n")
            return not self.run("squeue", "-h") and all(line.endswith(" idle") for line in states if line)

        until(idle, seconds, "all nodes are idle")

    def boot(self, name: str) -> None:
        """Switch a node on, with its slurmd."""
        self.nodes[name].boot()
        self.start_slurmd(name)

    def start_slurmd(self, name: str) -> None:
        """On a node that is up."""
        node = self.nodes[name]
        if self._freezer:  # in place of all of this machine's groups, where another cluster's n1 would meet this one
            node.run("mount", "--bind", str(self._freezer), str(self.folder / "cgroup" / "freezer"))
        with open(self.folder / f"slurmd-{name}.out", "ab") as out:
            node.start("slurmd", "-D", "-N", name, env=self.env, cwd=self.folder, stdout=out, stderr=out)


@contextmanager
def running(folder: Path, nodes: Nodes, kill_wait: int = 5) -> Iterator[Slurm]:
    """A Slurm on `nodes`, with its files in `folder`; `kill_wait` s lie between SIGTERM and SIGKILL (Slurm's default: 30)."""
    freezer = _FREEZER / f"{nodes.host}-{os.getpid()}" if os.access(_FREEZER / "cgroup.procs", os.W_OK) else None
    _configure(folder, nodes, kill_wait, freezer)
    slurm = Slurm(folder, nodes, freezer)
    with ExitStack() as stack:
        if freezer:
            freezer.mkdir()
            stack.callback(_remove_groups, freezer)
        _daemon(stack, slurm, "munged", *_munge(folder))
        answers = ["munge", "-n", "-S", str(folder / "munge.sock")]
        until(lambda: subprocess.run(answers, capture_output=True, check=False).returncode == 0, 10, "munged answers")
        _daemon(stack, slurm, "slurmctld", "-D")
        stack.callback(lambda: [node.crash() for node in nodes])
        for node in nodes:
            slurm.start_slurmd(node.name)
        slurm.settle()
        yield slurm


def _munge(folder: Path) -> list[str]:
    files = {"key-file": "munge.key", "socket": "munge.sock", "pid-file": "munge.pid", "log-file": "munge.log"}
    files["seed-file"] = "munge.seed"
    return ["-F", "--force", *(f"--{option}={folder / name}" for option, name in files.items())]


def _daemon(stack: ExitStack, slurm: Slurm, *command: str) -> None:
    """Run `command` until `stack` ends, or this process does."""
    with open(slurm.folder / f"{command[0]}.out", "ab") as out:
        process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", *command], env=os.environ | slurm.env, cwd=slurm.folder, stdout=out, stderr=out
        )

    def end() -> None:
        process.terminate()
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    stack.callback(end)


def _configure(folder: Path, nodes: Nodes, kill_wait: int, freezer: Path | None) -> None:
    rows = [f"NodeName={node.name} NodeAddr={node.address} CPUs={CPUS} RealMemory=8000 Gres=gpu:{CPUS}" for node in nodes]
    ports = 20000 + os.getpid() % 4000 * 2  # below those that the kernel gives to clients
    conf = _CONF.format(
        name=f"test{os.getpid()}",
        host=os.uname().nodename,
        address=nodes.host,
        port=ports,
        node_port=ports + 1,
        folder=folder,
        # linuxproc loses a process whose parent has died: it outlives its job, and its job stays COMPLETING.
        proctrack="cgroup" if freezer else "linuxproc",
        kill_wait=kill_wait,
        nodes="\n".join(rows),
    )
    (folder / "slurm.conf").write_text(conf)
    if freezer:
        (folder / "cgroup" / "freezer").mkdir(parents=True)
        (folder / "cgroup.conf").write_text(f"CgroupPlugin=cgroup/v1\nCgroupMountpoint={folder / 'cgroup'}\n")
    (folder / "munge.key").write_bytes(os.urandom(128))
    (folder / "munge.key").chmod(0o600)
    for number in range(CPUS):  # a GPU is a device file, and slurmd looks: these are /dev/null under other names
        os.mknod(folder / f"gpu{number}", 0o20600, os.makedev(1, 3))
    (folder / "gres.conf").write_text(f"Name=gpu File={folder}/gpu[0-{CPUS - 1}]\n")


def _remove_groups(freezer: Path) -> None:
    """Once the kernel has buried what was in them."""
    for group in [*sorted((path for path in freezer.rglob("*") if path.is_dir()), reverse=True), freezer]:
        until(partial(_remove_group, group), 30, f"{group} is empty")


def _remove_group(group: Path) -> bool:
    try:
        group.rmdir()
    except OSError:
        return False
    return True
