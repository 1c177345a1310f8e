"""What is handed to Kubernetes, against the models that JobSet's makers publish; and the token, wherever it goes."""

import copy
import json
import re
from dataclasses import replace
from typing import Any

import pytest
import yaml
from kubeflow_trainer_api.models.io_k8s_api_core_v1_config_map import IoK8sApiCoreV1ConfigMap
from kubeflow_trainer_api.models.jobset_v1alpha2_job_set import JobsetV1alpha2JobSet

from pipeline import variables
from pipeline.cluster.job import ClusterJob
from pipeline.cluster.job_specs import FINAL, PREEMPTED, as_yaml, aws_batch, config_map, hosts, jobset, skypilot, token_secret
from tests.support.cluster_jobs import BATCH, FULL, SMALL, places, renamed


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
    assert found == Topology(nodes=4, rank=3, address="biggan-128-node-0-0.biggan-128", port=29500, source="JobSet")
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


def test_machines_get_the_token_by_reference() -> None:
    secret = token_secret(FULL, "0123456789abcdef")
    (container,) = pod(FULL)["containers"]
    (reference,) = (each["valueFrom"]["secretKeyRef"] for each in container["env"] if each["name"] == variables.TOKEN)
    assert secret["metadata"]["name"] == reference["name"] and secret["stringData"] == {reference["key"]: "0123456789abcdef"}
    assert skypilot(FULL)["secrets"][variables.TOKEN] is None  # its value comes with --secret
    (range_,) = aws_batch(BATCH)["nodeProperties"]["nodeRangeProperties"]
    assert range_["container"]["secrets"] == [{"name": variables.TOKEN, "valueFrom": BATCH.secret}]
    with pytest.raises(ValueError, match=f"env.{variables.TOKEN}: is set by the job"):
        replace(FULL, env={variables.TOKEN: "0123456789abcdef"})
