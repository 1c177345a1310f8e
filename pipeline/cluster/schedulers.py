"""The table of schedulers: which variables of each say which node this is, of how many, and where the first one listens.

`ROWS` is in the order of who has the word, which `pipeline.cluster.topology` gives them. Nothing here imports torch.
"""

import json
import re
import shutil
import socket
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import ConfigError

PORT = 29500
"""Of the first node, where nobody names another: torchrun's own."""
FLAGS = "pass --nodes, --node-rank and --main-address"
"""What ends every error here."""
_SLURM_STEPS_END = 0xFFFFFFF0
"""Numbers from here on are no steps of srun's: batch script, interactive shell, extern (slurm/slurm.h)."""


@dataclass(frozen=True, kw_only=True)
class Topology:
    """This node's place. `address` and `port` are of node 0; `hosts` are all nodes by rank, where the scheduler tells."""

    nodes: int
    rank: int
    address: str
    port: int
    source: str
    hosts: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Scheduler:
    """A scheduler, and the variables that say how many nodes there are, which one this is, and where node 0 is."""

    source: str
    nodes: str
    rank: str
    address: str
    read: "Callable[[Scheduler, Mapping[str, str]], Topology | None]"
    port: str = ""
    hosts: str = ""

    def need(self, environ: Mapping[str, str], name: str) -> str:
        """The variable's value. Raises ConfigError if this scheduler's variables are there without it."""
        if value := environ.get(name, "").strip():
            return value
        beside = [each for each in (self.nodes, self.rank, self.address) if environ.get(each)]
        though = f", though {beside[0]} is" if beside else ""
        raise ConfigError(f"{self.source}: {name} is not set{though}: set it too, or unset the others, or {FLAGS}")

    def number(self, environ: Mapping[str, str], name: str) -> int:
        """As an integer. Raises ConfigError."""
        return _integer(name, self.need(environ, name))


def _own_address() -> str:
    """Of the interface that leads outside."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect(("192.0.2.1", 9))  # no packet is sent: the kernel chooses a route
            return str(probe.getsockname()[0])
    except OSError as error:
        raise ConfigError(f"this node finds no address of its own ({error}): {FLAGS}") from None


def _plain(row: Scheduler, environ: Mapping[str, str]) -> Topology | None:
    """One variable for each."""
    if not any(environ.get(name) for name in (row.nodes, row.rank, row.address)):
        return None
    nodes = row.number(environ, row.nodes)
    if nodes == 1:
        return Topology(nodes=1, rank=0, address="127.0.0.1", port=PORT, source=row.source)
    port = row.number(environ, row.port) if environ.get(row.port) else PORT
    address = row.need(environ, row.address).split()[0]
    return Topology(
        nodes=nodes,
        rank=row.number(environ, row.rank),
        address=address,
        port=port,
        source=row.source,
        hosts=tuple(environ.get(row.hosts, "").split()),
    )


def _batch(row: Scheduler, environ: Mapping[str, str]) -> Topology | None:
    """The main node, which need not be number 0, is not told its own address."""
    if not any(environ.get(name) for name in (row.nodes, row.rank)):
        return None
    nodes, index = row.number(environ, row.nodes), row.number(environ, row.rank)
    main = row.number(environ, "AWS_BATCH_JOB_MAIN_NODE_INDEX")
    if not (index < nodes and main < nodes):
        raise ConfigError(
            f"{row.rank}={index} and AWS_BATCH_JOB_MAIN_NODE_INDEX={main} of {nodes} nodes: both must be below, or {FLAGS}"
        )
    address = _own_address() if index == main else row.need(environ, row.address)
    return Topology(nodes=nodes, rank=(index - main) % nodes, address=address, port=PORT, source=row.source)


def _sagemaker(row: Scheduler, environ: Mapping[str, str]) -> Topology | None:
    """SM_* are set in Amazon's own images only; the file is there in all."""
    file = Path(environ.get("SAGEMAKER_BASE_DIR", "/opt/ml"), "input/config/resourceconfig.json")
    if environ.get(row.nodes) or environ.get(row.rank):
        where, current = row.nodes, row.need(environ, row.rank)
        hosts = _json(where, row.need(environ, row.nodes))
    elif file.exists():
        where, said = str(file), _json(str(file), file.read_text())
        hosts, current = (said.get("hosts"), str(said.get("current_host"))) if isinstance(said, dict) else (None, "")
    else:
        return None
    if not (isinstance(hosts, list) and hosts and current in hosts):
        raise ConfigError(f"{where}: must list all hosts, with this one ({current}) among them, or {FLAGS}")
    return Topology(
        nodes=len(hosts), rank=hosts.index(current), address=hosts[0], port=PORT, source=row.source, hosts=tuple(hosts)
    )


def _vertex(row: Scheduler, environ: Mapping[str, str]) -> Topology | None:
    """Pool 0 is one machine, pool 1 the others; further pools are for other programs (parameter servers, evaluators)."""
    if not environ.get(row.nodes):
        return None
    spec = _json(row.nodes, environ[row.nodes])
    try:
        pools = [list(spec["cluster"].get(f"workerpool{number}", [])) for number in (0, 1)]
        pool, index = str(spec["task"]["type"]), int(spec["task"]["index"])
        hosts = [re.fullmatch(r"([^:]+):(\d+)", each) for each in pools[0] + pools[1]]
        names, port = tuple(each[1] for each in hosts if each), int(hosts[0][2])  # type: ignore[index]
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise ConfigError(f"{row.nodes} is not as Vertex AI writes it ({error!r}): correct it, or {FLAGS}") from None
    if pool not in ("workerpool0", "workerpool1") or len(pools[0]) != 1 or len(names) != len(hosts):
        raise ConfigError(
            f"{row.nodes}: this machine is number {index} of {pool}, and workerpool0 has {len(pools[0])}: give the first pool "
            "one machine, the second all others, and no other pool this command"
        )
    return Topology(
        nodes=len(names), rank=index + int(pool == "workerpool1"), address=names[0], port=port, source=row.source, hosts=names
    )


def _jobset(row: Scheduler, environ: Mapping[str, str]) -> Topology | None:
    """Kubernetes tells only the index, `pipeline.cluster.job_specs` sets the rest. A TrainJob is an Indexed Job with PET_*."""
    if not environ.get(row.rank) or environ.get("PET_NNODES"):
        return None
    return _plain(row, environ)


def _slurm(row: Scheduler, environ: Mapping[str, str]) -> Topology | None:
    """A step of srun, or a job on one node: there, a batch script or a shell is as good."""
    if not (job := environ.get("SLURM_JOB_ID")):
        return None
    step = environ.get("SLURM_STEP_ID", "")
    in_step = step.isdigit() and int(step) < _SLURM_STEPS_END
    # In a step, SLURM_NNODES is the job's if srun was started with --preserve-env.
    nodes = row.number(environ, "SLURM_STEP_NUM_NODES" if in_step else row.nodes)
    tasks = row.number(environ, "SLURM_STEP_NUM_TASKS") if in_step else nodes
    if nodes > 1 and not in_step and any(environ.get(other.nodes) for other in ROWS if other is not row):
        return None  # SkyPilot on Slurm: its processes are no steps of their own
    if tasks != nodes or (nodes > 1 and not in_step):
        what = f"srun started {tasks} processes on {nodes} nodes" if in_step else f"this shell is one process of {nodes} nodes"
        raise ConfigError(
            f"Slurm job {job}: {what}, but each node needs one: use srun --ntasks-per-node=1 --nodes={nodes} biggan node ..."
        )
    if nodes == 1:
        return Topology(nodes=1, rank=0, address="127.0.0.1", port=PORT, source=row.source)
    hosts = _hosts(environ.get("SLURM_STEP_NODELIST") or row.need(environ, row.address), environ)
    # Jobs that share a first node must not share its ports; the roll is called at the next one.
    port = 20000 + 2 * (_integer("SLURM_JOB_ID", job) % 5000)
    return Topology(
        nodes=nodes, rank=row.number(environ, row.rank), address=hosts[0], port=port, source=row.source, hosts=hosts
    )


def _hosts(nodelist: str, environ: Mapping[str, str]) -> tuple[str, ...]:
    """As `scontrol show hostnames`. A container may lack that or its slurm.conf, and the usual lists are read without."""
    if scontrol := shutil.which("scontrol", path=environ.get("PATH", "")):
        command = [scontrol, "show", "hostnames", nodelist]
        done = subprocess.run(command, env=dict(environ), capture_output=True, text=True, check=False)
        if done.returncode == 0 and done.stdout.strip():
            return tuple(done.stdout.split())
    names = re.findall(r"(?:[^,\[\]]|\[[\d,-]+\])+", nodelist)
    if ",".join(names) != nodelist:
        raise ConfigError(f"{nodelist} is no list of nodes that can be read without a working scontrol: install it, or {FLAGS}")
    return tuple(host for name in names for host in _expand(name))


def _expand(name: str) -> list[str]:
    """n[08-10,12] -> n08, n09, n10, n12; of several brackets the last runs fastest."""
    before, bracket, rest = name.partition("[")
    if not bracket:
        return [name]
    ranges, _, after = rest.partition("]")
    numbers = []
    for part in ranges.split(","):
        first, _, last = part.partition("-")
        numbers += [f"{number:0{len(first)}d}" for number in range(int(first), int(last or first) + 1)]
    return [before + number + tail for number in numbers for tail in _expand(after)]


def anybody(environ: Mapping[str, str]) -> Topology | None:
    """torch's own names. Not compared with `ROWS`: WORLD_SIZE counts nodes with some schedulers, processes with others.

    RunPod (docs.runpod.io/instant-clusters/configuration) has NUM_NODES and NODE_RANK; Azure ML (learn.microsoft.com,
    how-to-train-distributed-gpu) NODE_RANK, and as many processes as nodes only by process_count_per_instance: 1; Volcano
    (volcano.sh, user-guide/how_to_use_pytorch_plugin.md) and Alibaba's DLC RANK and WORLD_SIZE of nodes.
    """
    if not any(environ.get(name) for name in ("MASTER_ADDR", "NODE_RANK", "RANK", "WORLD_SIZE")):
        return None
    nodes = next((name for name in ("NUM_NODES", "NNODES") if environ.get(name)), "WORLD_SIZE")
    rank = "NODE_RANK" if environ.get("NODE_RANK") else "RANK"
    azure = environ.get("AZUREML_NODE_COUNT", "")
    if environ.get("LOCAL_RANK", "0") != "0" or (azure and environ.get(nodes) != azure):
        raise ConfigError(
            "several processes of each node run this command, by LOCAL_RANK and WORLD_SIZE: start it once for each node "
            "(Azure ML: process_count_per_instance: 1)"
        )
    return _plain(
        Scheduler(
            source="whoever set torch's variables",
            nodes=nodes,
            rank=rank,
            address="MASTER_ADDR",
            read=_plain,
            port="MASTER_PORT",
        ),
        environ,
    )


def _integer(name: str, text: str) -> int:
    if not re.fullmatch(r"\d{1,9}", text):
        raise ConfigError(f"{name}={text}: must be a whole number, so many nodes as there always are, or {FLAGS}")
    return int(text)


def _json(name: str, text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise ConfigError(f"{name} is no JSON ({error}): correct it, or {FLAGS}") from None


ROWS = (
    # torchrun's defaults. Kubeflow Trainer 2.3 (TrainJob) and the training operator 1.9 (PyTorchJob) set all four:
    # github.com/kubeflow/training-operator, release-1.9, pkg/controller.v1/pytorch/{envvar,master}.go. There RANK is the
    # node's and WORLD_SIZE counts processes.
    Scheduler(
        source="torchrun or Kubeflow",
        nodes="PET_NNODES",
        rank="PET_NODE_RANK",
        address="PET_MASTER_ADDR",
        read=_plain,
        port="PET_MASTER_PORT",
    ),
    # docs.skypilot.co, Distributed Multi-Node Jobs.
    Scheduler(
        source="SkyPilot",
        nodes="SKYPILOT_NUM_NODES",
        rank="SKYPILOT_NODE_RANK",
        address="SKYPILOT_NODE_IPS",
        read=_plain,
        hosts="SKYPILOT_NODE_IPS",
    ),
    # docs.aws.amazon.com/batch/latest/userguide/mnp-env-vars.html
    Scheduler(
        source="AWS Batch",
        nodes="AWS_BATCH_JOB_NUM_NODES",
        rank="AWS_BATCH_JOB_NODE_INDEX",
        address="AWS_BATCH_JOB_MAIN_NODE_PRIVATE_IPV4_ADDRESS",
        read=_batch,
    ),
    # github.com/aws/sagemaker-training-toolkit, environment.py: hosts are sorted, the first is the main one.
    Scheduler(source="SageMaker", nodes="SM_HOSTS", rank="SM_CURRENT_HOST", address="SM_HOSTS", read=_sagemaker),
    # docs.cloud.google.com/vertex-ai/docs/training/distributed-training, "The format of CLUSTER_SPEC".
    Scheduler(source="Vertex AI", nodes="CLUSTER_SPEC", rank="CLUSTER_SPEC", address="CLUSTER_SPEC", read=_vertex),
    # kubernetes.io, Indexed Job: JOB_COMPLETION_INDEX.
    Scheduler(
        source="JobSet", nodes="NNODES", rank="JOB_COMPLETION_INDEX", address="MASTER_ADDR", read=_jobset, port="MASTER_PORT"
    ),
    # dstack.ai/docs/concepts/tasks, System environment variables.
    Scheduler(
        source="dstack",
        nodes="DSTACK_NODES_NUM",
        rank="DSTACK_NODE_RANK",
        address="DSTACK_MASTER_NODE_IP",
        read=_plain,
        hosts="DSTACK_NODES_IPS",
    ),
    # srun(1), OUTPUT ENVIRONMENT VARIABLES; src/common/env.c. A cloud's job can inherit these from a login shell.
    Scheduler(source="Slurm", nodes="SLURM_NNODES", rank="SLURM_NODEID", address="SLURM_JOB_NODELIST", read=_slurm),
)
