"""The machines that other tests stand on."""

import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.nodes import Nodes, require, until


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    require()
    folder = tmp_path_factory.mktemp("pair")
    with Nodes(folder, ["n1", "n2.example"], disks=[folder / "own"]) as nodes:
        yield nodes


def reaches(nodes: Nodes, name: str) -> bool:
    """Whether n1 gets an answer from `name`, if only that nobody listens there."""
    command = ["bash", "-c", f"exec 3<> /dev/tcp/{name}/9"]
    process = nodes["n1"].start("timeout", "2", *command, stderr=subprocess.PIPE, text=True)
    return "Connection refused" in process.communicate()[1]


def test_each_has_a_name_an_address_and_processes_of_its_own(pair: Nodes) -> None:
    assert [node.run("hostname").strip() for node in pair] == ["n1", "n2"]
    for name in ("n1", "n2", "n2.example", pair.host):
        assert reaches(pair, name), name
    assert pair["n1"].run("bash", "-c", "echo $$; ls -d /proc/[0-9]* | wc -l").split()[1] < "9"


def test_files_are_shared_and_disks_are_not(pair: Nodes, tmp_path: Path) -> None:
    own = pair._hosts.parent / "own" / "file"
    pair["n1"].run("touch", str(own), str(tmp_path / "shared"))
    assert (tmp_path / "shared").exists() and not own.exists()
    pair["n1"].run("test", "-e", str(own))
    pair["n2.example"].run("test", "!", "-e", str(own))


def test_a_signal_reaches_the_process(pair: Nodes) -> None:
    process = pair["n1"].start(
        "bash", "-c", "trap 'exit 7' TERM; echo ready; sleep 60 & wait", stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "ready\n"
    pair["n1"].signal(process, signal.SIGTERM)
    assert process.wait(timeout=10) == 7


@pytest.mark.long
def test_a_cable_is_pulled_and_plugged_in(pair: Nodes) -> None:
    pair["n2.example"].cut()
    assert not reaches(pair, "n2")
    pair["n2.example"].heal()
    until(lambda: reaches(pair, "n2"), 10, "n1 reaches n2")


@pytest.mark.long
def test_a_crash_ends_every_process_and_a_boot_brings_the_machine_back(pair: Nodes) -> None:
    node = pair["n2.example"]
    process = node.start("setsid", "sleep", "1000")
    until(lambda: "sleep" in node.run("ps", "-eo", "comm"), 5, "sleep runs")
    node.crash()
    assert process.wait(timeout=5)
    assert not reaches(pair, "n2")
    node.boot()
    until(lambda: reaches(pair, "n2"), 10, "n1 reaches n2 again")
    node.run("test", "!", "-e", str(pair._hosts.parent / "own" / "file"))
