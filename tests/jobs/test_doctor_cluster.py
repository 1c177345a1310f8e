"""`biggan doctor --cluster` as a scheduler starts it: a process for each node, over gloo on this machine."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.cli import main
from pipeline import variables
from tests.support.mistakes import refusal
from tests.support.servers import S3Server, free_port

ROOT = Path(__file__).parent.parent.parent


class Nodes:
    """Nodes of one cluster; each has as its host name an address of this machine, as under SkyPilot."""

    def __init__(self, count: int, folder: Path):
        self.count, self.port, self._folder = count, free_port(), folder
        self.hosts = [f"127.0.0.{rank + 1}" for rank in range(count)]
        self._processes: dict[int, subprocess.Popen[bytes]] = {}

    def start(self, rank: int, *arguments: str, code: Path = ROOT, fault: str = "", env: dict[str, str] | None = None) -> None:
        place = {"SKYPILOT_NUM_NODES": self.count, "SKYPILOT_NODE_RANK": rank, "SKYPILOT_NODE_IPS": "\n".join(self.hosts)}
        place |= {variables.TOKEN: "a secret of these nodes"}
        path = os.pathsep.join(filter(None, (str(code), os.environ.get("PYTHONPATH"))))
        place |= {"PYTHONPATH": path, "OMP_NUM_THREADS": 1, variables.NODE_FAULT: fault} | (env or {})
        command = [sys.executable, "-m", "jobs.cli", "doctor", "--cluster", "--main-port", str(self.port), "--seconds", "2"]
        with open(self._folder / f"{rank}.out", "wb") as out, open(self._folder / f"{rank}.err", "wb") as err:
            self._processes[rank] = subprocess.Popen(
                [*command, *arguments],
                cwd=code,
                stdout=out,
                stderr=err,
                env=os.environ | {name: str(value) for name, value in place.items()},
            )

    def end(self) -> list[int]:
        """Exit codes by rank."""
        try:
            return [self._processes[rank].wait(timeout=500) for rank in sorted(self._processes)]
        finally:
            for process in self._processes.values():
                process.kill()
                process.wait()

    def said(self, rank: int, stream: str = "out") -> str:
        return (self._folder / f"{rank}.{stream}").read_text()


def examine(
    count: int, folder: Path, *arguments: str, fault: str = "", env: dict[str, str] | None = None
) -> tuple[Nodes, list[int]]:
    nodes = Nodes(count, folder)
    for rank in range(count):
        nodes.start(rank, *arguments, fault=fault, env=env)
    return nodes, nodes.end()


@pytest.mark.long
def test_two_nodes_are_well(tmp_path: Path, s3_server: S3Server) -> None:
    bad = tmp_path / "bad.txt"
    arguments = ("--storage", f"{s3_server.uri}/doctor", "--exclude-file", str(bad), "--json")
    nodes, codes = examine(2, tmp_path, *arguments, env=s3_server.env)
    assert codes == [0, 0], nodes.said(0) + nodes.said(0, "err")
    found = json.loads(nodes.said(0))
    assert found["ok"] and found["bad"] == [] and bad.read_text() == "" and nodes.said(1) == ""
    ((_, _, rate),) = found["pairs"]
    assert rate > 1e6 and found["all_reduce"] > 1e6
    for node in found["nodes"].values():
        assert node["stores"][0]["write"] > 1e5 and node["stores"][0]["read"] > 1e5
        assert all(device["bf16"] > 1e9 and device["fp32"] > 1e9 for device in node["devices"])
        assert abs(node["clock"][0]) < 1 and node["software"] == found["nodes"]["0"]["software"]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_sick_nodes_are_named_and_left_out(tmp_path: Path) -> None:
    bad = tmp_path / "bad.txt"
    arguments = ("--storage", str(tmp_path), "--exclude-file", str(bad))
    nodes, codes = examine(4, tmp_path, *arguments, fault="1:clock:12,1:storage:1000,1:matrix:30,2:link:1")
    text = nodes.said(0)
    assert codes == [69] * 4, text + nodes.said(0, "err")
    assert "BAD   node 1 (127.0.0.2): clock 12.0 s ahead" in text
    assert "BAD   node 1 (127.0.0.2): processor: fp32 matrix products" in text
    assert f"BAD   node 1 (127.0.0.2): writing {tmp_path}" in text
    assert "BAD   node 2 (127.0.0.3): all-reduce with every other node" in text
    assert "leave out: node 1 (127.0.0.2), node 2 (127.0.0.3)" in text
    assert bad.read_text() == "127.0.0.2\n127.0.0.3\n"
    assert not list(tmp_path.glob(".doctor-*"))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_nodes_that_are_absent_late_or_silent_are_named(tmp_path: Path) -> None:
    bad = tmp_path / "bad.txt"
    nodes = Nodes(4, tmp_path)
    for rank in (0, 1, 2):  # 3 does not come
        nodes.start(rank, "--wait", "15", "--exclude-file", str(bad), fault="1:late:25,2:silent:1")
    codes = nodes.end()
    text = nodes.said(0)
    assert codes == [69] * 3, text + nodes.said(0, "err")
    for rank in (1, 3):
        assert f"BAD   node {rank} (127.0.0.{rank + 1}): did not report within 15 s" in text
    assert "BAD   node 2 (127.0.0.3): reported, but did not answer when asked for `clock` within" in text
    assert bad.read_text() == "127.0.0.2\n127.0.0.3\n127.0.0.4\n"
    assert "came too late" in nodes.said(1, "err") or "does not answer" in nodes.said(1, "err")


@pytest.mark.slow
def test_a_node_with_other_code_is_told_apart(tmp_path: Path) -> None:
    for package in ("model", "pipeline", "jobs"):
        shutil.copytree(ROOT / package, tmp_path / "other" / package, ignore=shutil.ignore_patterns("__pycache__"))
    with (tmp_path / "other" / "pipeline" / "data" / "order.py").open("a") as file:
        file.write("# a line more\n")
    nodes = Nodes(2, tmp_path)
    nodes.start(0)
    nodes.start(1, code=tmp_path / "other")
    assert nodes.end() == [78, 78] and "code differs: node 0" in nodes.said(0)


@pytest.mark.slow
def test_two_nodes_with_one_number(tmp_path: Path) -> None:
    first, second = Nodes(2, tmp_path), Nodes(2, tmp_path / "second")
    (tmp_path / "second").mkdir()
    second.port = first.port
    first.start(0, "--wait", "30")
    first.start(1, "--wait", "30")
    second.start(1, "--wait", "30")
    codes = [*first.end(), *second.end()]
    assert codes[0] == 0 and sorted(codes) == [0, 0, 78]
    assert "two processes say that they are node 1" in first.said(1, "err") + second.said(1, "err")


@pytest.mark.long
def test_one_node(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--cluster", "--nodes", "1", "--seconds", "1"]) == 0
    assert "the node is well" in capsys.readouterr().out


def test_a_port_that_is_taken(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variables.TOKEN, "a secret of these nodes")
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        port = str(other.getsockname()[1])
        place = ("--nodes", "2", "--node-rank", "0", "--main-address", "127.0.0.1", "--main-port", port)
        code, line = refusal(capsys, "doctor", "--cluster", *place)
    assert code == 78 and f"port {port}" in line and "--main-port" in line


@pytest.mark.long
def test_nobody_at_node_0(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variables.TOKEN, "a secret of these nodes")
    place = ("--nodes", "2", "--node-rank", "1", "--main-address", "127.0.0.1", "--main-port", "9", "--wait", "3")
    code, line = refusal(capsys, "doctor", "--cluster", *place)
    assert code == 69 and "node 0 does not answer at 127.0.0.1:9 within 3 s" in line


@pytest.mark.long
def test_a_configuration_says_what_is_measured(tmp_path: Path, shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The run's folder stays as it was: absent, or a start would refuse it."""
    run = tmp_path / "run"
    overrides = [f"run={run}", f"data.uri={shards}", "tracking.uri=http://127.0.0.1:9"]
    assert main(["doctor", "--cluster", "cifar10", *overrides, "--nodes", "1", "--seconds", "1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    (node,) = found["nodes"].values()
    assert [store["uri"] for store in node["stores"]] == [f"{run}/checkpoints", str(shards)]
    assert node["stores"][0]["write"] > 0 and node["stores"][1]["read"] > 0 and str(run) in node["disks"]
    assert "biggan sync" in found["findings"][0]["text"] and found["findings"][0]["code"] == 0
    assert not run.exists() and not list(tmp_path.iterdir())


@pytest.mark.gpu
def test_gpus_are_looked_at(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As many nodes as there are GPUs, up to two, each with one: NCCL refuses a GPU that two processes share."""
    import torch

    count = min(2, torch.cuda.device_count())
    nodes = Nodes(count, tmp_path)
    for rank in range(count):
        nodes.start(rank, "--json", env={"CUDA_VISIBLE_DEVICES": str(rank)})
    assert set(nodes.end()) <= {0, 69}, nodes.said(0, "err")  # somebody else may be using the GPU
    found = json.loads(nodes.said(0))
    for node in found["nodes"].values():
        (device,) = node["devices"]
        assert node["gpus"] == 1 and device["bf16"] > 1e12 and "driver" in node["software"]
        assert device["mhz"] or node["notes"]
    assert all(rate > 1e8 for *_, rate in found["pairs"])


def test_what_to_type(capsys: pytest.CaptureFixture[str]) -> None:
    code, line = refusal(capsys, "doctor", "--json")
    assert code == 78 and "--data URI" in line and "--cluster" in line
