"""What is handed to clusters, against the schemas that their makers publish: JobSet's models, SkyPilot's parser, AWS's API."""

import copy
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from botocore.loaders import Loader
from botocore.model import ServiceModel
from botocore.validate import ParamValidator
from kubeflow_trainer_api.models.io_k8s_api_core_v1_config_map import IoK8sApiCoreV1ConfigMap
from kubeflow_trainer_api.models.jobset_v1alpha2_job_set import JobsetV1alpha2JobSet

from pipeline.cluster.job import ClusterJob
from pipeline.cluster.job_specs import FINAL, PREEMPTED, as_yaml, aws_batch, config_map, hosts, jobset, skypilot, token_secret
from pipeline.errors import ConfigError
from pipeline.messaging.job_token import VARIABLE

CONFIG = "run: /scratch/run\ntotal_images: 1000\ncheckpoint:\n  uri: s3://bucket/run\n"
SMALL = ClusterJob("gan", "ghcr.io/acme/biggan:1.0", CONFIG, gpu="H100")
FULL = ClusterJob(
    "biggan-128",
    "ghcr.io/acme/biggan@sha256:" + "0" * 64,
    CONFIG,
    nodes=4,
    gpu="H100",
    cpus=96,
    memory_gb=900,
    env={"NCCL_DEBUG": "WARN", "AWS_REGION": "eu-west-1"},
    secrets=("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"),
    queue="gpu",
    service_account="trainer",
    node_selector={"cloud.google.com/gke-spot": "true"},
    instance_type="p5.48xlarge",
)
BATCH = replace(FULL, secrets=())


def places(tree: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where each key of a tree is, but for keys that are data (labels, limits, environment)."""
    if isinstance(tree, dict) and (not at or at[-1] not in ("labels", "requests", "limits", "nodeSelector", "data", "envs")):
        for key, value in tree.items():
            yield (*at, key)
            yield from places(value, (*at, key))
    elif isinstance(tree, list):
        for index, value in enumerate(tree):
            yield from places(value, (*at, index))


def renamed(tree: Any, at: tuple[Any, ...]) -> Any:
    """The tree with one key misspelt."""
    tree = copy.deepcopy(tree)
    node = tree
    for part in at[:-1]:
        node = node[part]
    node[at[-1] + "s"] = node.pop(at[-1])
    return tree


def check_kubernetes(tree: dict[str, Any]) -> None:
    """The models drop what they do not know, so whatever is lost on the way is misspelt."""
    model = IoK8sApiCoreV1ConfigMap if tree.get("kind") == "ConfigMap" else JobsetV1alpha2JobSet
    back = json.loads(model.from_json(json.dumps(tree)).to_json())
    assert back == tree


def test_a_namespace_with_the_restricted_standard_takes_the_pods() -> None:
    """The standard's own list (Kubernetes, Pod Security Standards, "Restricted"), and no token of the cluster."""
    (replicated,) = jobset(FULL)["spec"]["replicatedJobs"]
    pod = replicated["template"]["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    assert {kind for volume in pod["volumes"] for kind in volume} <= {"name", "configMap", "emptyDir", "secret", "projected"}
    for container in pod["containers"]:
        wanted = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
        assert container["securityContext"] == wanted and not any("hostPort" in port for port in container.get("ports", []))
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)


@pytest.mark.parametrize("job", [SMALL, FULL], ids=["small", "full"])
def test_jobset_is_what_its_models_know(job: ClusterJob) -> None:
    check_kubernetes(config_map(job))
    check_kubernetes(jobset(job))
    text = as_yaml(config_map(job), jobset(job))
    assert list(yaml.safe_load_all(text)) == [config_map(job), jobset(job)] and "\n    total_images: 1000\n" in text


def test_every_misspelt_key_of_a_jobset_is_caught() -> None:
    tree = jobset(FULL)
    found = list(places(tree))
    assert len(found) > 80
    for at in found:
        with pytest.raises((AssertionError, ValueError)):
            check_kubernetes(renamed(tree, at))
    for at, wrong in ((("spec", "failurePolicy", "maxRestarts"), "20"), (("metadata", "name"), 7)):
        broken = copy.deepcopy(tree)
        node = broken
        for part in at[:-1]:
            node = node[part]
        node[at[-1]] = wrong
        with pytest.raises((AssertionError, ValueError)):
            check_kubernetes(broken)


def test_a_jobset_says_to_its_pods_what_the_topology_reads() -> None:
    from pipeline.cluster.topology import Topology, find

    (container,) = pod(FULL)["containers"]
    environ = {each["name"]: each["value"] for each in container["env"] if "value" in each}
    found = find(environ | {"JOB_COMPLETION_INDEX": "3"})  # which Kubernetes sets
    assert found == Topology(4, 3, "biggan-128-node-0-0.biggan-128", 29500, "JobSet")
    assert hosts(FULL)[0] == found.address and container["command"] == ["biggan", "node", "/etc/biggan/config.yaml"]
    assert int(environ["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"]) < pod(FULL)["terminationGracePeriodSeconds"]
    assert find({"NNODES": "1", "JOB_COMPLETION_INDEX": "0"}).nodes == 1


def pod(job: ClusterJob) -> dict[str, Any]:
    return indexed(job)["template"]["spec"]


def indexed(job: ClusterJob) -> dict[str, Any]:
    return jobset(job)["spec"]["replicatedJobs"][0]["template"]["spec"]


@pytest.mark.parametrize(
    ("code", "action"),
    [(code, "FailJobSet") for code in FINAL]
    + [(code, "RestartJobSetAndIgnoreMaxRestarts") for code in PREEMPTED]
    + [(code, "RestartJobSet") for code in (1, 70, 74, 137)],
)
def test_what_a_jobset_does_about_an_exit_code(code: int, action: str) -> None:
    """The controllers' own steps: the Job's rules, the message of the failed Job (KEP-262), the JobSet's rules."""
    job = indexed(FULL)
    first = next(
        (rule for rule in job["podFailurePolicy"]["rules"] if code in rule.get("onExitCodes", {}).get("values", [])), None
    )
    reason, message = "BackoffLimitExceeded", "Job has reached the specified backoff limit"
    if first:
        index = job["podFailurePolicy"]["rules"].index(first)
        where = "pod default/gan-node-0-1-abcde"
        message = f"Container train for {where} failed with exit code {code} matching FailJob rule at index {index}"
        reason = "PodFailurePolicy"
    assert decided(reason, message) == action


def decided(reason: str, message: str) -> str:
    for rule in jobset(FULL)["spec"]["failurePolicy"]["rules"]:
        if reason in rule["onJobFailureReasons"] and any(
            re.fullmatch(pattern, message) for pattern in rule["onJobFailureMessagePatterns"]
        ):
            return str(rule["action"])
    return "RestartJobSet"


def test_an_evicted_pod_restarts_the_jobset_for_nothing() -> None:
    message = "Pod default/gan-node-0-1-abcde has condition DisruptionTarget matching FailJob rule at index 1"
    assert decided("PodFailurePolicy", message) == "RestartJobSetAndIgnoreMaxRestarts"


def test_names_that_the_jobset_controller_refuses_are_not_made() -> None:
    for rule in jobset(FULL)["spec"]["failurePolicy"]["rules"]:
        assert re.fullmatch(r"[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?", rule["name"])
    assert len(f"{replace(SMALL, name='a' * 48).name}-node-0-0-abcde") == 63


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"name": "Gan"}, "name=Gan: lower-case"),
        ({"name": "7gan"}, "name=7gan"),
        ({"name": "gan-"}, "name=gan-"),
        ({"name": "a" * 49}, "1 characters too long"),
        ({"name": "a" * 48, "nodes": 11}, "1 characters too long"),
        ({"image": "ghcr.io/acme/biggan"}, "name a version"),
        ({"image": "registry:5000/biggan"}, "name a version"),
        ({"image": "ghcr.io/acme/biggan:latest"}, "name a version"),
        ({"nodes": 0}, "nodes=0: must be at least 1"),
        ({"gpus": -1}, "gpus=-1"),
        ({"grace": 0}, "grace=0"),
        ({"port": 70000}, "port=70000"),
        ({"env": {"NNODES": "2"}}, "env.NNODES: is set by the job"),
        ({"env": {"A-B": "2"}}, "env.A-B: is no name"),
        ({"env": {"AWS_SECRET_ACCESS_KEY": "x"}}, "name it in secrets"),
        ({"env": {"MLFLOW_TRACKING_PASSWORD": "x"}}, "name it in secrets"),
        ({"secrets": ("MASTER_ADDR",)}, "is set by the job"),
    ],
)
def test_what_a_cluster_would_refuse_is_refused_here(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        replace(SMALL, **change)


# SkyPilot's own parser, in an environment of its own (`make skypilot`).
SKYPILOT = Path(sys.prefix, "share/skypilot/bin/python")
PARSE = """
import json, sys, sky
secrets = [("AWS_ACCESS_KEY_ID", "a"), ("AWS_SECRET_ACCESS_KEY", "b")]
for line in sys.stdin:
    try:
        task = sky.Task.from_yaml_config(json.loads(line), secrets_overrides=secrets)
        (resources,) = task.resources
        print(json.dumps([task.num_nodes, resources.accelerators, resources.use_spot, resources.job_recovery, task.run]))
    except Exception as error:
        print(json.dumps(f"{type(error).__name__}: {error}"))
"""


@pytest.fixture(scope="module")
def parsed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[list[Any]], list[Any]]:
    """What SkyPilot makes of tasks: a list of what it has read, or its complaint."""
    if not SKYPILOT.exists():
        pytest.skip("needs `make skypilot`")
    home = tmp_path_factory.mktemp("home")

    def parse(tasks: list[Any]) -> list[Any]:
        done = subprocess.run(
            [SKYPILOT, "-c", PARSE],
            input="".join(json.dumps(task) + "\n" for task in tasks),
            env=os.environ | {"HOME": str(home), "PYTHONPATH": "", "SKYPILOT_DISABLE_USAGE_COLLECTION": "1"},
            capture_output=True,
            text=True,
            check=True,
        )
        return [json.loads(line) for line in done.stdout.splitlines()]

    return parse


@pytest.mark.slow
def test_skypilot_reads_its_task_and_refuses_every_misspelt_key(parsed: Callable[[list[Any]], list[Any]]) -> None:
    task = skypilot(FULL)
    # Below `config` are its users' own keys of other programs; it leaves the keys of job_recovery to its server, as we do not.
    wrong = [at for at in places(task) if at[:2] != ("resources", "job_recovery") and at[0] not in ("config", "secrets")]
    assert set(task["resources"]["job_recovery"]) == {"max_restarts_on_errors", "recover_on_exit_codes"}
    answers = parsed([task, yaml.safe_load(as_yaml(task)), skypilot(SMALL), *(renamed(task, at) for at in wrong)])
    recovery = {"max_restarts_on_errors": 20, "recover_on_exit_codes": list(PREEMPTED), "strategy": None}
    assert answers[0] == [4, {"H100": 8}, True, recovery, task["run"]] == answers[1]
    assert answers[2][0] == 1
    for at, answer in zip(wrong, answers[3:], strict=True):
        assert isinstance(answer, str), (at, answer)


def test_the_script_of_skypilot_writes_the_configuration_and_runs_the_node(tmp_path: Path) -> None:
    task = skypilot(replace(FULL, config=CONFIG + "seed: $HOME `id` 'x'\n"))
    node = tmp_path / "biggan"
    node.write_text('#!/bin/sh\necho "$@"; cat "$2"\n')
    node.chmod(0o755)
    environ = {"PATH": f"{tmp_path}:/bin:/usr/bin", "HOME": str(tmp_path)}
    said = subprocess.run(["bash", "-c", task["run"]], env=environ, capture_output=True, text=True, check=True).stdout
    assert said == f"node {tmp_path}/biggan.yaml\n{CONFIG}seed: $HOME `id` 'x'\n"
    assert (
        int(task["envs"]["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"])
        < (task["config"]["kubernetes"]["pod_config"]["spec"]["terminationGracePeriodSeconds"])
    )


def test_skypilot_needs_the_kind_of_gpu() -> None:
    with pytest.raises(ConfigError, match="gpu: SkyPilot needs the kind"):
        skypilot(replace(SMALL, gpu=""))
    assert "accelerators" not in skypilot(replace(SMALL, gpu="", gpus=0))["resources"]


def check_batch(request: dict[str, Any]) -> str:
    model = ServiceModel(Loader().load_service_model("batch", "service-2"))
    return ParamValidator().validate(request, model.operation_model("RegisterJobDefinition").input_shape).generate_report()


def test_aws_batch_is_what_its_api_takes_and_misspelt_keys_are_not() -> None:
    request = aws_batch(BATCH)
    assert check_batch(request) == ""
    for at in places(request):
        assert check_batch(renamed(request, at)), at
    broken = copy.deepcopy(request)
    broken["nodeProperties"]["numNodes"] = "4"
    assert "numNodes" in check_batch(broken)


def test_aws_batch_says_what_it_needs() -> None:
    for name in ("cpus", "memory_gb", "instance_type"):
        with pytest.raises(ConfigError, match=f"{name}: AWS Batch needs it"):
            aws_batch(replace(BATCH, **{name: type(getattr(BATCH, name))()}))
    with pytest.raises(ConfigError, match="secrets: on AWS Batch"):
        aws_batch(FULL)
    container = aws_batch(BATCH)["nodeProperties"]["nodeRangeProperties"][0]["container"]
    assert {"type": "MEMORY", "value": "921600"} in container["resourceRequirements"]
    assert aws_batch(BATCH)["nodeProperties"]["nodeRangeProperties"][0]["targetNodes"] == "0:3"


def test_machines_get_the_token_by_reference() -> None:
    secret = token_secret(FULL, "0123456789abcdef")
    (container,) = pod(FULL)["containers"]
    (reference,) = (each["valueFrom"]["secretKeyRef"] for each in container["env"] if each["name"] == VARIABLE)
    assert secret["metadata"]["name"] == reference["name"] and secret["stringData"] == {reference["key"]: "0123456789abcdef"}
    assert skypilot(FULL)["secrets"][VARIABLE] is None  # its value comes with --secret
    (range_,) = aws_batch(BATCH)["nodeProperties"]["nodeRangeProperties"]
    assert range_["container"]["secrets"] == [{"name": VARIABLE, "valueFrom": BATCH.secret}]
    with pytest.raises(ValueError, match=f"env.{VARIABLE}: is set by the job"):
        replace(FULL, env={VARIABLE: "0123456789abcdef"})
