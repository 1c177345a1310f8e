"""One training on many machines, described once, as what each cluster's own commands take. Pure functions, no network.

`jobset` is for Kubernetes with JobSet (v0.12), `skypilot` for `sky jobs launch`, `aws_batch` for
`aws batch register-job-definition`. Each machine runs `biggan node` once; what it exits with decides what becomes of the job.
"""

import re
import shlex
from typing import Any

import yaml

from pipeline import exit_codes, variables
from pipeline.cluster.job import NODE, ClusterJob
from pipeline.errors import ConfigError

FINAL = exit_codes.numbers("never")
"""Exit codes of what would end the same way again."""
PREEMPTED = exit_codes.numbers("freely")
"""Saved and stopped, or terminated before there was anything to save."""

MARGIN = 30
"""Seconds for all that is not the saving: the updates of all ranks have to end first, and logs go out."""

_CONFIG = "/etc/biggan/config.yaml"


class _Dumper(yaml.SafeDumper):
    """Text of several lines stays as it is: a configuration is there to be read."""


def _represent(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    """Quote what readers of YAML 1.2, which kubectl is one of, take for a number: `08`, `1e3`."""
    number = re.fullmatch(r"[-+.]?\d[\w.+-]*", text)
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else "'" if number else None)


_Dumper.add_representer(str, _represent)


def as_yaml(*documents: dict[str, Any]) -> str:
    """As files of kubectl and sky."""
    return yaml.dump_all(documents, Dumper=_Dumper, sort_keys=False, width=1000)


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
            "replicatedJobs": [{"name": NODE, "replicas": 1, "template": {"spec": indexed}}],
        },
    }


def token_secret(job: ClusterJob, token: str) -> dict[str, Any]:
    """The Secret by which the pods of a JobSet know each other: for kubectl's stdin, and no file."""
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": _token_name(job)},
        "immutable": True,
        "stringData": {variables.TOKEN: token},
    }


def _token_name(job: ClusterJob) -> str:
    return f"{job.name}-token"


def hosts(job: ClusterJob) -> list[str]:
    """Names of a JobSet's machines in its cluster's DNS, by rank."""
    return [f"{job.name}-{NODE}-0-{rank}.{job.name}" for rank in range(job.nodes)]


def _rule(name: str, action: str, *patterns: str) -> dict[str, Any]:
    reasons = ["PodFailurePolicy"]
    return {"name": name, "action": action, "onJobFailureReasons": reasons, "onJobFailureMessagePatterns": list(patterns)}


def _pod(job: ClusterJob) -> dict[str, Any]:
    where = {"NNODES": str(job.nodes), "MASTER_ADDR": hosts(job)[0], "MASTER_PORT": str(job.port)}
    environment: list[dict[str, Any]] = [
        {"name": name, "value": value} for name, value in {**_environment(job), **where}.items()
    ]
    environment += [{"name": key, "valueFrom": {"secretKeyRef": {"name": job.secret, "key": key}}} for key in job.secrets]
    token = {"name": _token_name(job), "key": variables.TOKEN}
    environment.append({"name": variables.TOKEN, "valueFrom": {"secretKeyRef": token}})
    asked = {"cpu": job.cpus, "memory": job.memory_gb and f"{job.memory_gb}Gi", "nvidia.com/gpu": job.gpus}
    asked |= {"ephemeral-storage": f"{job.scratch_gb}Gi"}
    wanted = {name: str(value) for name, value in asked.items() if value}
    limits = {name: value for name, value in wanted.items() if name != "cpu"}  # a limit on cores only slows the loader
    pod = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": job.grace + MARGIN,
        # What the Pod Security Standard "restricted" asks for. Nothing of ours talks to Kubernetes: the tokens by which clouds
        # know a service account are others.
        "securityContext": {"runAsNonRoot": True, "fsGroup": 1000, "seccompProfile": {"type": "RuntimeDefault"}},
        "automountServiceAccountToken": False,
        "containers": [
            {
                "name": "train",
                "image": job.image,
                "command": command(),
                "env": environment,
                "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
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
        "secrets": dict.fromkeys([*job.secrets, variables.TOKEN]),
        "config": {
            "docker": {"run_options": [f"--shm-size={job.shm_gb}g", "--ulimit=memlock=-1"]},
            "kubernetes": {"pod_config": {"spec": {"terminationGracePeriodSeconds": job.grace + MARGIN}}},
        },
        "run": f"cat > ~/biggan.yaml <<'END OF CONFIG'\n{job.config.rstrip()}\nEND OF CONFIG\nexec biggan node ~/biggan.yaml\n",
    }


def aws_batch(job: ClusterJob) -> dict[str, Any]:
    """A multi-node parallel job definition, as `RegisterJobDefinition` takes it."""
    for name in ("cpus", "memory_gb", "instance_type"):
        if not getattr(job, name):
            raise ConfigError(f"{name}: AWS Batch needs it")
    if job.secrets:
        raise ConfigError("secrets: on AWS Batch, give the job a role (service_account) that may use the bucket")
    environment = {**_environment(job), variables.CONFIG: job.config}
    wanted = {"VCPU": job.cpus, "MEMORY": job.memory_gb * 1024, "GPU": job.gpus}
    container = {
        "image": job.image,
        "instanceType": job.instance_type,
        "command": [
            "sh",
            "-c",
            f'printf %s "${variables.CONFIG}" > /tmp/config.yaml && exec {shlex.join(command("/tmp/config.yaml"))}',
        ],
        "environment": [{"name": name, "value": value} for name, value in environment.items()],
        "resourceRequirements": [{"type": kind, "value": str(value)} for kind, value in wanted.items() if value],
        "linuxParameters": {"sharedMemorySize": job.shm_gb * 1024},
        "ulimits": [{"name": "memlock", "hardLimit": -1, "softLimit": -1}],
        # By the token the machines know each other: a parameter that Batch reads for them, with the role that it runs them in.
        "secrets": [{"name": variables.TOKEN, "valueFrom": job.secret}],
        **({"jobRoleArn": job.service_account, "executionRoleArn": job.service_account} if job.service_account else {}),
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
