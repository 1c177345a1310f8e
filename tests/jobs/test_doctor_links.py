"""`biggan doctor --cluster` on machines with links of their own, one of them throttled by the kernel."""

import sys
from pathlib import Path

import pytest

from tests.support.nodes import Nodes, require

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_node_with_the_slow_link_is_named(tmp_path: Path) -> None:
    require()
    bad = tmp_path / "bad.txt"
    names = ["n1", "n2", "n3"]
    with Nodes(tmp_path, names) as nodes:
        # 20 Mbit/s, a hundredth and less of what the bridge gives. What it sends suffices: an all-reduce goes both ways.
        nodes["n3"].run("tc", "qdisc", "add", "dev", "eth0", "root", "tbf", "rate", "20mbit", "burst", "64kb", "latency", "2s")
        started = [
            node.start(
                *(sys.executable, "-m", "jobs.cli", "doctor", "--cluster", "--exclude-file", str(bad), "--wait", "120"),
                env={
                    "BIGGAN_TOKEN": "a secret of these nodes",
                    "SKYPILOT_NUM_NODES": "3",
                    "SKYPILOT_NODE_RANK": str(rank),
                    "SKYPILOT_NODE_IPS": "\n".join(names),
                    "PYTHONPATH": str(ROOT),
                    "OMP_NUM_THREADS": "1",
                },
                cwd=ROOT,
                stdout=(tmp_path / f"{node.name}.out").open("w"),
            )
            for rank, node in enumerate(nodes)
        ]
        codes = [process.wait(timeout=500) for process in started]
    text = (tmp_path / "n1.out").read_text()
    assert codes == [69] * 3, text
    assert "BAD   node 2 (n3): all-reduce with every other node" in text and "leave out: node 2 (n3)" in text
    assert bad.read_text() == "n3\n"
