"""Jobs for clouds: what is refused before anything is sent, and the rendered job itself on machines that a test makes.

No control plane is here. What a cluster would do is done by hand: a machine for each pod with its own network, processes and
disks, the environment that the manifest and Kubernetes (or SkyPilot) give it, the manifest's own command, SIGTERM.
"""

import shutil
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pytest
import yaml

from benchmarks.servers.mlflow_server import MlflowServer
from jobs.cli import main
from pipeline import storage, variables
from pipeline.checkpoint import format
from pipeline.cluster.job_specs import MARGIN
from pipeline.tracking.mlflow_store import connect
from tests.support.nodes import Node, Nodes, require, until
from tests.support.servers import address
from tests.support.tiny_runs import TINY

REPOSITORY = Path(__file__).parents[2]
KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
TOKEN = "0123456789abcdef" * 2
NAMES = [f"gan-node-0-{rank}.gan" for rank in (0, 1)]
SCRATCH, CONFIG = Path("/scratch"), Path("/etc/biggan")
GRACE = 300  # this machine may have other things to do


@dataclass(frozen=True)
class Cloud:
    """Machines, and what they reach."""

    nodes: Nodes
    env: dict[str, str]
    """That leads to the store."""
    mlflow: MlflowServer

    def arguments(self, folder: Path, run: str) -> list[str]:
        """Of `biggan submit jobset` and `skypilot`, for a small training."""
        cluster, config = folder / "cluster.yaml", folder / "config.yaml"
        known = {"image": "registry.example/biggan:1.0", "gpus": 0, "env": self.env, "secrets": list(KEYS), "name": "gan"}
        cluster.write_text(yaml.safe_dump(known))
        small = {"data": {"uri": "s3://bucket/shards"}, "total_images": 512, "processes": 1, "stop": {"grace": GRACE}}
        config.write_text(yaml.safe_dump(TINY | small))
        uris = [f"checkpoint.uri=s3://bucket/{run}", f"tracking.uri=http://{self.nodes.host}:{self.mlflow.port}"]
        return [str(config), f"run={folder}/{run}", *uris, f"tracking.experiment={run}", "--nodes=2", f"--cluster={cluster}"]


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory, shards: Path, empty_store: Path) -> Iterator["Cloud"]:
    """Two machines, a store and an MLflow server that they reach over their bridge, shards in the store."""
    require()
    folder = tmp_path_factory.mktemp("cloud")
    made = [place for place in (SCRATCH, CONFIG) if not place.exists()]
    mlflow = MlflowServer(folder, "--host", "0.0.0.0", "--allowed-hosts", "*")
    shutil.copy(empty_store, folder / "server.db")
    with Nodes(folder, NAMES, disks=[SCRATCH, CONFIG]) as nodes, open(folder / "s3.log", "wb") as log:
        command = [sys.executable, "-c", "from moto.server import main; main()", "-H", "0.0.0.0", "-p", "0"]
        server = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            mlflow.start()
            port = address(folder / "s3.log", server, r"Running on http://127\.0\.0\.1:(\d+)")
            env = {"AWS_ENDPOINT_URL": f"http://{nodes.host}:{port}", "AWS_REGION": "us-east-1"}
            with pytest.MonkeyPatch.context() as patch:
                for name, value in (KEYS | env | {"NO_PROXY": nodes.host}).items():
                    patch.setenv(name, value)
                bucket = urllib.request.Request(f"{env['AWS_ENDPOINT_URL']}/bucket", method="PUT")
                urllib.request.build_opener(urllib.request.ProxyHandler({})).open(bucket, timeout=30).close()
                for file in shards.iterdir():
                    storage.write_bytes(f"s3://bucket/shards/{file.name}", file.read_bytes())
                yield Cloud(nodes, env, mlflow)
        finally:
            mlflow.kill()
            server.terminate()
            server.wait()
            for place in made:
                place.rmdir()


@pytest.mark.slow
def test_what_is_submitted_is_kept_and_handed_to_kubectl(
    cloud: Cloud, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["submit", "jobset", *cloud.arguments(tmp_path, "kept"), "--namespace", "gan"]
    submission = tmp_path / "kept" / "submission"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(arguments) == 78
    said = capsys.readouterr().err
    assert (
        "kubectl is not installed here" in said
        and f"kubectl create --namespace gan --filename {submission}/jobset.yaml" in said
    )
    assert not (submission / "job.json").exists()

    kubectl = tmp_path / "kubectl"  # says what it was asked for, and whether it takes it
    given = f'[ "$5" != - ] || /bin/cat > {tmp_path}/secret\n'
    kubectl.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n{given}exit $(/bin/cat {tmp_path}/code)\n')
    kubectl.chmod(0o755)
    for code, expected in ((1, 78), (0, 0)):
        (tmp_path / "code").write_text(str(code))
        assert main(arguments) == expected
        asked = ["create --namespace gan --filename " + file for file in (f"{submission}/jobset.yaml", "-")]
        assert (tmp_path / "asked").read_text().splitlines() == asked[: 1 + (code == 0)]
        (tmp_path / "asked").unlink()
        assert (submission / "job.json").exists() == (code == 0)
    assert "kubectl --namespace gan get jobset/gan" in capsys.readouterr().out
    config_map, jobset = yaml.safe_load_all((submission / "jobset.yaml").read_text())
    assert yaml.safe_load(config_map["data"]["config.yaml"])["run"] == "/scratch/kept"
    assert jobset["metadata"]["name"] == "gan"
    # The token goes to kubectl's stdin, and is in no file here.
    secret = yaml.safe_load((tmp_path / "secret").read_text())
    token = secret["stringData"][variables.TOKEN]
    assert len(token) == 64 and secret["metadata"]["name"] == "gan-token"
    assert not [file for file in submission.rglob("*") if file.is_file() and token in file.read_text()]
    assert main(["status", str(tmp_path / "kept")]) == 0
    assert "jobset gan" in capsys.readouterr().out


@pytest.mark.slow
def test_skypilot_gets_secrets_from_here(
    cloud: Cloud, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["submit", "skypilot", *cloud.arguments(tmp_path, "secret")]
    file = tmp_path / "cluster.yaml"
    known = yaml.safe_load(file.read_text())
    file.write_text(yaml.safe_dump(known | {"secrets": [*KEYS, "WANTED"]}))
    with monkeypatch.context() as patch:
        patch.setenv("PATH", str(tmp_path))
        assert main(arguments) == 78
        assert "secrets: WANTED is not set here" in capsys.readouterr().err
        patch.setenv("WANTED", "1")
        assert main(arguments) == 78
        said = capsys.readouterr().err
    assert (
        "sky is not installed here" in said
        and "--secret AWS_ACCESS_KEY_ID --secret AWS_SECRET_ACCESS_KEY --secret WANTED --secret BIGGAN_TOKEN" in said
    )


@dataclass(frozen=True)
class Pod:
    """What one machine runs, with nothing of this process's environment but the way to the code."""

    node: Node
    env: dict[str, str]
    command: list[str]

    def start(self, log: IO[bytes]) -> "subprocess.Popen[bytes]":
        own = {"PATH": f"{sys.prefix}/bin:/usr/sbin:/usr/bin:/bin", "HOME": str(SCRATCH), "PYTHONPATH": str(REPOSITORY)}
        clean = ["env", "-i", *(f"{name}={value}" for name, value in (own | self.env).items())]
        return self.node.start(*clean, *self.command, cwd=SCRATCH, stdout=log, stderr=log)


def pods_of_jobset(cloud: Cloud, documents: list[dict[str, Any]]) -> list[Pod]:
    """As Kubernetes would: its own index, values of a Secret, a file of the ConfigMap."""
    config_map, jobset = documents
    (container,) = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["containers"]
    secrets = KEYS | {variables.TOKEN: TOKEN}
    env = {each["name"]: each.get("value", secrets.get(each["name"])) for each in container["env"]}
    for node in cloud.nodes:
        for name, text in config_map["data"].items():
            node.run("bash", "-c", f'printf %s "$TEXT" > {CONFIG}/{name}', env={"TEXT": text})
    return [Pod(node, env | {"JOB_COMPLETION_INDEX": str(rank)}, container["command"]) for rank, node in enumerate(cloud.nodes)]


def pods_of_skypilot(cloud: Cloud, documents: list[dict[str, Any]]) -> list[Pod]:
    """As SkyPilot would: addresses, ranks, secrets, and bash for the script."""
    (task,) = documents
    assert set(task["secrets"]) == {*KEYS, variables.TOKEN}
    addresses = "\n".join(node.address for node in cloud.nodes)
    env = (
        task["envs"]
        | KEYS
        | {variables.TOKEN: TOKEN}
        | {"SKYPILOT_NODE_IPS": addresses, "SKYPILOT_NUM_NODES": str(task["num_nodes"])}
    )
    command = ["bash", "-c", task["run"]]
    return [Pod(node, env | {"SKYPILOT_NODE_RANK": str(rank)}, command) for rank, node in enumerate(cloud.nodes)]


@pytest.mark.slow
@pytest.mark.timeout(2400)
@pytest.mark.parametrize("scheduler", ["jobset", "skypilot"])
def test_a_machine_is_given_back_all_save_and_new_machines_go_on(
    cloud: Cloud, tmp_path: Path, capsys: pytest.CaptureFixture[str], scheduler: str
) -> None:
    assert main(["submit", scheduler, *cloud.arguments(tmp_path, scheduler), "--dry-run"]) == 0
    documents = list(yaml.safe_load_all(capsys.readouterr().out))
    assert not (tmp_path / scheduler).exists()  # --dry-run leaves nothing
    place = f"s3://bucket/{scheduler}"

    new_machines(cloud)
    codes, said = run(cloud, scheduler, documents, tmp_path, stop_after=place)
    assert codes == [75, 75], said
    stopped = format.newest(place)
    assert stopped and 0 < stopped.images < 512, said
    (before,) = runs(cloud, scheduler)
    assert before.info.status == "KILLED"

    new_machines(cloud)
    codes, said = run(cloud, scheduler, documents, tmp_path)
    assert codes == [0, 0], said
    assert f"resuming at image {stopped.images:,}" in said
    last = format.newest(place)
    assert last and last.images == 512
    (after,) = runs(cloud, scheduler)
    assert after.info.run_id == before.info.run_id and after.info.status == "FINISHED"
    assert sum(name.startswith("20") for name in storage.names(f"{place}/logs")) == 4


def new_machines(cloud: Cloud) -> None:
    """In the place of the old ones, with empty disks."""
    for node in cloud.nodes:
        node.crash()
        node.boot()


def run(cloud: Cloud, scheduler: str, documents: list[Any], folder: Path, stop_after: str = "") -> tuple[list[int], str]:
    """Exit codes of all machines and what they said. With `stop_after`, the second gets SIGTERM once a checkpoint is there."""
    pods = (pods_of_jobset if scheduler == "jobset" else pods_of_skypilot)(cloud, documents)
    logs = [folder / f"{rank}.log" for rank in range(len(pods))]
    processes = []
    for pod, log in zip(pods, logs, strict=True):
        with open(log, "wb") as file:
            processes.append(pod.start(file))
    patience = 900
    try:
        if stop_after:
            until(lambda: format.newest(stop_after) or processes[0].poll() is not None, patience, "a checkpoint", 1.0)
            pods[1].node.signal(processes[1], signal.SIGTERM)
            patience = GRACE + MARGIN
            assert f"terminationGracePeriodSeconds: {patience}" in yaml.safe_dump(documents)
        codes = [process.wait(timeout=patience) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return codes, "\n".join(log.read_text() for log in logs)


def runs(cloud: Cloud, experiment: str) -> list[Any]:
    client = connect(cloud.mlflow.uri)
    return list(client.search_runs([client.get_experiment_by_name(experiment).experiment_id]))


def test_slurm_replaces_nothing_in_a_runs_name() -> None:
    from jobs.submit import _options

    assert _options(Path("/runs/50% of %j"), "train")[1] == "--output=/runs/50%% of %%j/logs/slurm-train-%j.log"
