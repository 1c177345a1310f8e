"""One training on many machines, described once, as what each cluster's own commands take. Pure functions, no network.

`jobset` is for Kubernetes with JobSet (v0.12), `skypilot` for `sky jobs launch`, `aws_batch` for
`aws batch register-job-definition`. Each machine runs `biggan node` once; what it exits with decides what becomes of the job.
"""

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pipeline.errors import ConfigError, DataError, TrainingError
from pipeline.stop import EXIT_CODE as STOPPED

FINAL = (DataError.exit_code, ConfigError.exit_code, TrainingError.exit_code)
"""Exit codes of what would end the same way again."""
PREEMPTED = (STOPPED, 143)
"""Saved and stopped, or terminated before there was anything to save."""

MARGIN = 30
"""Seconds for all that is not the saving: the updates of all ranks have to end first, and logs go out."""

_REPLICATED = "node"
_CONFIG = "/etc/biggan/config.yaml"
_LABEL = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SECRET = re.compile(r"SECRET|PASSWORD|TOKEN|ACCESS_KEY|PRIVATE_KEY|CREDENTIAL", re.IGNORECASE)
_OURS = ("NNODES", "MASTER_ADDR", "MASTER_PORT", "JOB_COMPLETION_INDEX", "TORCH_ELASTIC_SHUTDOWN_TIMEOUT")


@dataclass(frozen=True)
class ClusterJob:
    """What a cluster has to know. Raises ValueError naming the field that it would refuse, or misunderstand."""

    name: str
    """Of the job, and within its names of machines: lower-case letters, digits and hyphens."""
    image: str
    """Container image, with a tag or, better, a digest."""
    config: str
    """The run's whole configuration as YAML. `run` is a folder below /scratch, `checkpoint.uri` an object store."""
    nodes: int = 1
    """Machines."""
    gpus: int = 8
    """GPUs of each; 0 for none."""
    gpu: str = ""
    """Their kind, as SkyPilot names it: H100. Kubernetes chooses by `node_selector`, AWS Batch by `instance_type`."""
    cpus: int = 0
    """Cores of each machine to ask for; 0 asks for none. AWS Batch needs it."""
    memory_gb: int = 0
    """Memory of each machine to ask for, in GiB; 0 asks for none. AWS Batch needs it."""
    shm_gb: int = 64
    """Size of /dev/shm in GiB: what NCCL and the transforms' processes share."""
    scratch_gb: int = 500
    """Local disk for the run's folder and the data's cache, in GiB."""
    grace: int = 120
    """Seconds that a save may take when the machine is to be given back: `stop.grace`."""
    env: Mapping[str, str] = field(default_factory=dict)
    """Environment variables. Passwords do not belong here."""
    secrets: tuple[str, ...] = ()
    """Names of environment variables whose values the cluster keeps: keys of the Kubernetes Secret, or `sky --secret`."""
    secret: str = "biggan"
    """The Kubernetes Secret that holds them."""
    queue: str = ""
    """Kueue's LocalQueue."""
    service_account: str = ""
    """Kubernetes service account: may be what the bucket trusts. AWS Batch: the job's role."""
    node_selector: Mapping[str, str] = field(default_factory=dict)
    """Labels of the Kubernetes nodes that it may run on, such as a kind of GPU, or spot machines."""
    instance_type: str = ""
    """AWS Batch's machines."""
    spot: bool = True
    """SkyPilot: machines that may be taken away. Elsewhere the queue or the nodes decide."""
    max_restarts: int = 20
    """Restarts after crashes. Being preempted does not count."""
    port: int = 29500
    """Where the first machine listens."""

    def __post_init__(self) -> None:
        if not _LABEL.fullmatch(self.name):
            raise ValueError(f"name={self.name}: lower-case letters, digits and hyphens, from a letter to no hyphen")
        longest = f"{self.name}-{_REPLICATED}-0-{self.nodes - 1}-abcde"
        if len(longest) > 63:
            raise ValueError(f"name={self.name}: {len(longest) - 63} characters too long for names as {longest}")
        if not re.search(r":[\w.-]+$|@sha256:[0-9a-f]{64}$", self.image) or self.image.endswith(":latest"):
            raise ValueError(
                f"image={self.image}: name a version, as in registry/biggan:1.0 or, better, registry/biggan@sha256:..."
            )
        for name, least in _LEAST.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least {least}")
        if self.port > 65535:
            raise ValueError(f"port={self.port}: must be below 65536")
        for name in (*self.env, *self.secrets):
            if not _VARIABLE.fullmatch(name) or name in _OURS:
                raise ValueError(f"env.{name}: " + ("is set by the job" if name in _OURS else "is no name of a variable"))
        for name in self.env:
            if _SECRET.search(name):
                raise ValueError(f"env.{name}: manifests are no place for it; name it in secrets")


_LEAST = {
    "nodes": 1,
    "gpus": 0,
    "cpus": 0,
    "memory_gb": 0,
    "shm_gb": 1,
    "scratch_gb": 1,
    "grace": 1,
    "max_restarts": 0,
    "port": 1,
}


def command(config: str = _CONFIG) -> list[str]:
    """What each machine runs, once."""
    return ["biggan", "node", config]


def _environment(job: ClusterJob) -> dict[str, str]:
    """On every machine. torchrun kills workers so many seconds after its own SIGTERM, which must leave time to go."""
    return {"PYTHONUNBUFFERED": "1", "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(job.grace), **job.env}


def config_map(job: ClusterJob) -> dict[str, Any]:
    """The configuration, which the pods of `jobset` mount."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": f"{job.name}-config"},
        "immutable": True,
        "data": {"config.yaml": job.config},
    }


def jobset(job: ClusterJob) -> dict[str, Any]:
    """A JobSet of one Indexed Job, one pod for each machine. Whatever ends one pod ends all, and all begin again together.

    Of the exit codes, FINAL fail the JobSet; PREEMPTED, and pods that were evicted, restart it as often as it takes; others
    restart it `max_restarts` times. A rule of a JobSet finds codes in the message that a failed Job leaves (KEP-262).
    """
    labels = {"kueue.x-k8s.io/queue-name": job.queue} if job.queue else {}
    codes = {name: "|".join(map(str, numbers)) for name, numbers in (("final", FINAL), ("preempted", PREEMPTED))}
    rules = [
        _rule("final", "FailJobSet", f".*exit code ({codes['final']}) .*"),
        _rule(
            *("preempted", "RestartJobSetAndIgnoreMaxRestarts"),
            *(f".*exit code ({codes['preempted']}) .*", ".*condition DisruptionTarget .*"),
        ),
    ]
    indexed = {
        "parallelism": job.nodes,
        "completions": job.nodes,
        "completionMode": "Indexed",
        "backoffLimit": 0,
        "podFailurePolicy": {
            "rules": [
                {"action": "FailJob", "onExitCodes": {"containerName": "train", "operator": "In", "values": list(FINAL)}},
                {"action": "FailJob", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
                {"action": "FailJob", "onExitCodes": {"containerName": "train", "operator": "In", "values": list(PREEMPTED)}},
            ]
        },
        "template": {"spec": _pod(job)},
    }
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {"name": job.name, **({"labels": labels} if labels else {})},
        "spec": {
            # The first pod must have its name in DNS before it is ready: the others wait for it by name.
            "network": {"enableDNSHostnames": True, "publishNotReadyAddresses": True},
            "failurePolicy": {"maxRestarts": job.max_restarts, "restartStrategy": "BlockingRecreate", "rules": rules},
            "replicatedJobs": [{"name": _REPLICATED, "replicas": 1, "template": {"spec": indexed}}],
        },
    }


def hosts(job: ClusterJob) -> list[str]:
    """Names of a JobSet's machines in its cluster's DNS, by rank."""
    return [f"{job.name}-{_REPLICATED}-0-{rank}.{job.name}" for rank in range(job.nodes)]


def _rule(name: str, action: str, *patterns: str) -> dict[str, Any]:
    reasons = ["PodFailurePolicy"]
    return {"name": name, "action": action, "onJobFailureReasons": reasons, "onJobFailureMessagePatterns": list(patterns)}


def _pod(job: ClusterJob) -> dict[str, Any]:
    where = {"NNODES": str(job.nodes), "MASTER_ADDR": hosts(job)[0], "MASTER_PORT": str(job.port)}
    environment: list[dict[str, Any]] = [
        {"name": name, "value": value} for name, value in {**_environment(job), **where}.items()
    ]
    environment += [{"name": key, "valueFrom": {"secretKeyRef": {"name": job.secret, "key": key}}} for key in job.secrets]
    asked = {"cpu": job.cpus, "memory": job.memory_gb and f"{job.memory_gb}Gi", "nvidia.com/gpu": job.gpus}
    asked |= {"ephemeral-storage": f"{job.scratch_gb}Gi"}
    wanted = {name: str(value) for name, value in asked.items() if value}
    limits = {name: value for name, value in wanted.items() if name != "cpu"}  # a limit on cores only slows the loader
    pod = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": job.grace + MARGIN,
        "securityContext": {"runAsNonRoot": True, "fsGroup": 1000},
        "containers": [
            {
                "name": "train",
                "image": job.image,
                "command": command(),
                "env": environment,
                "resources": {"requests": wanted, "limits": limits},
                "volumeMounts": [
                    {"name": "config", "mountPath": _CONFIG.rpartition("/")[0], "readOnly": True},
                    {"name": "shm", "mountPath": "/dev/shm"},
                    {"name": "scratch", "mountPath": "/scratch"},
                ],
            }
        ],
        "volumes": [
            {"name": "config", "configMap": {"name": f"{job.name}-config"}},
            {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": f"{job.shm_gb}Gi"}},
            {"name": "scratch", "emptyDir": {"sizeLimit": f"{job.scratch_gb}Gi"}},
        ],
    }
    if job.gpus:
        pod["tolerations"] = [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    if job.service_account:
        pod["serviceAccountName"] = job.service_account
    if job.node_selector:
        pod["nodeSelector"] = dict(job.node_selector)
    return pod


def skypilot(job: ClusterJob) -> dict[str, Any]:
    """A task for `sky jobs launch`, which recovers; `sky launch` does not.

    SkyPilot has no code that ends a job at once: FINAL are tried again `max_restarts` times, as any error is.
    """
    resources: dict[str, Any] = {
        "image_id": f"docker:{job.image}",
        "disk_size": job.scratch_gb,
        "network_tier": "best",
        "use_spot": job.spot,
        "job_recovery": {"max_restarts_on_errors": job.max_restarts, "recover_on_exit_codes": list(PREEMPTED)},
    }
    if job.gpus:
        if not job.gpu:
            raise ConfigError("gpu: SkyPilot needs the kind of GPU, as `sky show-gpus` lists it: gpu: H100")
        resources["accelerators"] = f"{job.gpu}:{job.gpus}"
    if job.cpus:
        resources["cpus"] = f"{job.cpus}+"
    if job.memory_gb:
        resources["memory"] = f"{job.memory_gb}+"
    return {
        "name": job.name,
        "num_nodes": job.nodes,
        "resources": resources,
        "envs": _environment(job),
        **({"secrets": dict.fromkeys(job.secrets)} if job.secrets else {}),
        "config": {
            "docker": {"run_options": [f"--shm-size={job.shm_gb}g", "--ulimit=memlock=-1"]},
            "kubernetes": {"pod_config": {"spec": {"terminationGracePeriodSeconds": job.grace + MARGIN}}},
        },
        "run": f"cat > /tmp/config.yaml <<'END OF CONFIG'\n{job.config.rstrip()}\nEND OF CONFIG\n"
        f"exec {shlex.join(command('/tmp/config.yaml'))}\n",
    }


def aws_batch(job: ClusterJob) -> dict[str, Any]:
    """A multi-node parallel job definition, as `RegisterJobDefinition` takes it."""
    for name in ("cpus", "memory_gb", "instance_type"):
        if not getattr(job, name):
            raise ConfigError(f"{name}: AWS Batch needs it")
    if job.secrets:
        raise ConfigError("secrets: on AWS Batch, give the job a role (service_account) that may use the bucket")
    environment = {**_environment(job), "BIGGAN_CONFIG": job.config}
    wanted = {"VCPU": job.cpus, "MEMORY": job.memory_gb * 1024, "GPU": job.gpus}
    container = {
        "image": job.image,
        "instanceType": job.instance_type,
        "command": [
            "sh",
            "-c",
            f'printf %s "$BIGGAN_CONFIG" > /tmp/config.yaml && exec {shlex.join(command("/tmp/config.yaml"))}',
        ],
        "environment": [{"name": name, "value": value} for name, value in environment.items()],
        "resourceRequirements": [{"type": kind, "value": str(value)} for kind, value in wanted.items() if value],
        "linuxParameters": {"sharedMemorySize": job.shm_gb * 1024},
        "ulimits": [{"name": "memlock", "hardLimit": -1, "softLimit": -1}],
        **({"jobRoleArn": job.service_account} if job.service_account else {}),
    }
    return {
        "jobDefinitionName": job.name,
        "type": "multinode",
        "nodeProperties": {
            "numNodes": job.nodes,
            "mainNode": 0,
            "nodeRangeProperties": [{"targetNodes": f"0:{job.nodes - 1}", "container": container}],
        },
        "retryStrategy": {
            # Batch counts every attempt, and there are at most ten.
            "attempts": min(10, 1 + job.max_restarts),
            "evaluateOnExit": [
                {"onStatusReason": "Host EC2*", "action": "RETRY"},
                *({"onExitCode": str(code), "action": "EXIT"} for code in FINAL),  # what no rule meets is tried again
            ],
        },
    }
