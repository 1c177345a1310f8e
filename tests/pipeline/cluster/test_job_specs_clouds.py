"""What is handed to SkyPilot and AWS Batch, against SkyPilot's own parser and AWS's own description of its API."""

import copy
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from botocore.loaders import Loader
from botocore.model import ServiceModel
from botocore.validate import ParamValidator

from pipeline.cluster.job_specs import PREEMPTED, as_yaml, aws_batch, skypilot
from pipeline.errors import ConfigError
from tests.support.cluster_jobs import BATCH, CONFIG, FULL, SMALL, places, renamed

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


@pytest.mark.long
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
