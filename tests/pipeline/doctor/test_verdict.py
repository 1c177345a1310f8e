"""What is said of nodes, from made-up reports; what nodes really report is in tests/jobs/test_doctor_cluster.py."""

from dataclasses import replace
from itertools import combinations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.doctor import _EPILOG
from pipeline.doctor import verdict
from pipeline.doctor.allreduce import tournament
from pipeline.doctor.node import NodeDevice, NodeReport
from pipeline.doctor.stores import Store
from pipeline.doctor.verdict import Finding, Gathered, bad_nodes, exit_code, judge_nodes
from pipeline.doctor.verdict_table import verdict_table

SOFTWARE = {"python": "3.11.2", "torch": "2.13.0", "code": "0123456789ab", "driver": "570.1"}
H100 = NodeDevice(name="NVIDIA H100", bf16=600e12, fp32=50e12, free=0.99, mhz=1980)
GOOD = NodeReport(
    gpus=8,
    devices=(H100,) * 8,
    software=SOFTWARE,
    stores=(Store("s3://bucket/run", write=400e6, read=800e6),),
    disks={"runs": 1e12, "/tmp": 1e11},
    mlflow=0.02,
)


def cluster(nodes: int, **changed: Any) -> Gathered:
    """Equal nodes."""
    found = Gathered(nodes=nodes, hosts={rank: f"n{rank}" for rank in range(nodes)}, cuda=True)
    found.reports = dict.fromkeys(range(nodes), GOOD)
    found.clocks = dict.fromkeys(range(nodes), (0.0, 0.001))
    found.pairs = dict.fromkeys(combinations(range(nodes), 2), 40e9)
    found.together = 40e9 if nodes > 1 else None
    for name, value in changed.items():
        setattr(found, name, getattr(found, name) | value)
    return found


def slow_links(nodes: int, *slow: int) -> dict[tuple[int, int], float | str]:
    return {pair: 10e9 for pair in combinations(range(nodes), 2) if set(pair) & set(slow)}


@st.composite
def noisy(draw: st.DrawFn, least: int) -> Gathered:
    """Equal nodes as they are measured: every figure a little different."""
    found = cluster(draw(st.integers(least, 9)))
    random = draw(st.randoms(use_true_random=False))

    def about(value: float, part: float) -> float:
        return value * random.uniform(1 - part, 1 + part)

    for rank in found.reports:
        devices = tuple(replace(H100, bf16=about(600e12, 0.1), fp32=about(50e12, 0.1)) for _ in range(8))
        store = Store("s3://bucket/run", about(400e6, 0.5), about(800e6, 0.5))
        found.reports[rank] = replace(GOOD, devices=devices, stores=(store,), mlflow=about(0.05, 0.9))
        found.clocks[rank] = (random.uniform(-0.2, 0.2), 0.01)
    found.pairs = {pair: about(40e9, 0.3) for pair in found.pairs}
    return found


@pytest.mark.long
@given(noisy(least=1))
def test_equal_nodes_give_no_alarm(found: Gathered) -> None:
    assert judge_nodes(found) == [] and exit_code([]) == 0
    assert "well" in verdict_table(found, [])


@pytest.mark.long
@given(noisy(least=3), st.data())
def test_the_sick_node_is_named_and_no_other(found: Gathered, data: st.DataObject) -> None:
    sick = data.draw(st.sampled_from(range(found.nodes)))
    report = found.reports[sick]
    disease = data.draw(st.sampled_from(["gpu", "link", "write", "read", "clock", "torch", "disk", "gone", "mlflow", "gpus"]))
    if disease == "gpu":
        ill = data.draw(st.integers(0, 7))
        devices = tuple(replace(d, bf16=d.bf16 / 2) if i == ill else d for i, d in enumerate(report.devices))
        found.reports[sick] = replace(report, devices=devices)
    elif disease == "link":
        found.pairs = {
            pair: rate / 5 if sick in pair else rate for pair, rate in found.pairs.items() if isinstance(rate, float)
        }
    elif disease in ("write", "read"):
        found.reports[sick] = replace(report, stores=(replace(report.stores[0], **{disease: 20e6}),))
    elif disease == "clock":
        found.clocks[sick] = (data.draw(st.sampled_from([-12.0, 12.0])), 0.01)
    elif disease == "torch":
        found.reports[sick] = replace(report, software=SOFTWARE | {"torch": "2.12.0"})
    elif disease == "disk":
        found.reports[sick] = replace(report, disks={"runs": 1e12, "/tmp": 1e6})
    elif disease == "mlflow":
        found.reports[sick] = replace(report, mlflow=None, mlflow_error="no route")
    elif disease == "gpus":
        found.reports[sick] = replace(report, gpus=7, devices=report.devices[:7])
    else:
        del found.reports[sick], found.clocks[sick]
        found.pairs = {pair: rate for pair, rate in found.pairs.items() if sick not in pair}
        found.absent[sick] = "did not report within 60 s"
    findings = judge_nodes(found)
    assert {finding.nodes for finding in findings} == {(sick,)} and bad_nodes(findings) == [sick]
    assert exit_code(findings) == 69
    assert f"leave out: node {sick} (n{sick})" in verdict_table(found, findings)


@pytest.mark.parametrize(
    ("found", "nodes", "text"),
    [
        (cluster(4, pairs=slow_links(4, 2)), (2,), "with every other node 4x slower than the median (10 GB/s, not"),
        (cluster(3, clocks={1: (12.3, 0.0)}), (1,), "clock 12.3 s ahead"),
        # Node 0 is what the others are measured by, and can be the wrong one itself.
        (cluster(4, clocks={1: (12, 0.0), 2: (12, 0.0), 3: (12, 0.0)}), (0,), "clock 12.0 s behind"),
        (cluster(2, pairs={(0, 1): "connection refused"}), (), "reaches another by all-reduce: connection refused; is the"),
        (cluster(3, pairs={(0, 1): "timed out", (1, 2): "timed out"}), (1,), "no all-reduce with any other node: timed out"),
        (cluster(4, pairs={(1, 2): 5e9}), (1, 2), "node 1 (n1) and node 2 (n2) 8x slower than the median; both do well"),
        (cluster(3, reports={2: replace(GOOD, devices=(*[H100] * 7, replace(H100, throttled="power brake")))}), (2,), "power"),
        (cluster(3, reports={2: replace(GOOD, devices=(*[H100] * 7, replace(H100, free=0.4)))}), (2,), "60% of its memory"),
        (cluster(3, reports={2: replace(GOOD, devices=(*[H100] * 7, replace(H100, ecc=3)))}), (2,), "GPU 7 has 3 memory"),
        (cluster(3, reports={2: replace(GOOD, stores=(Store("s3://bucket/run", error="no route"),))}), (2,), "unlike other"),
    ],
)  # fmt: skip
def test_what_is_said(found: Gathered, nodes: tuple[int, ...], text: str) -> None:
    (finding,) = judge_nodes(found)
    assert finding.nodes == nodes and text in finding.text, finding


@pytest.mark.parametrize(
    ("found", "code", "text"),
    [
        # Two that differ: nobody can tell who is right, and another allocation would not help.
        (cluster(2, clocks={1: (12, 0.0)}), 78, "12.0 s apart"),
        (cluster(2, reports={1: replace(GOOD, software=SOFTWARE | {"code": "ffff"})}), 78, "node 1 (n1) ffff; make it"),
        (cluster(2, reports=dict.fromkeys(range(2), replace(GOOD, stores=(Store("s3://x", error="no bucket"),)))), 74, "no"),
        (cluster(2, reports=dict.fromkeys(range(2), replace(GOOD, disks={"runs": 5e6}))), 74, "runs has 0.01 GB free"),
        (cluster(2, reports=dict.fromkeys(range(2), replace(GOOD, mlflow=None, mlflow_error="refused"))), 0, "biggan sync"),
    ],
)  # fmt: skip
def test_what_is_wrong_everywhere_has_no_bad_node(found: Gathered, code: int, text: str) -> None:
    (finding,) = judge_nodes(found)
    assert exit_code([finding]) == code and text in finding.text and bad_nodes([finding]) == []


def test_of_two_nodes_the_slower_is_bad() -> None:
    slow = tuple(replace(device, bf16=200e12) for device in GOOD.devices)
    assert bad_nodes(judge_nodes(cluster(2, reports={0: replace(GOOD, devices=slow)}))) == [0]


def test_a_bad_link_costs_one_of_its_ends() -> None:
    assert bad_nodes([Finding((1, 2), "slow")]) == [2]
    assert bad_nodes([Finding((1, 2), "slow"), Finding((0, 1), "slow")]) == [1]
    assert bad_nodes([Finding((1, 2), "slow"), Finding((2,), "clock")]) == [2]
    assert bad_nodes([Finding((), "everywhere"), Finding((3,), "MLflow", 0)]) == []


@pytest.mark.parametrize("nodes", [1, 2, 3, 6, 7, 16])
def test_every_two_meet_once_and_nobody_twice_in_a_round(nodes: int) -> None:
    rounds = tournament(range(10, 10 + nodes))
    assert sorted(pair for matches in rounds for pair in matches) == list(combinations(range(10, 10 + nodes), 2))
    assert all(len({rank for pair in matches for rank in pair}) == 2 * len(matches) for matches in rounds)


def test_many_nodes_meet_enough_others() -> None:
    rounds = tournament(range(64))
    assert len(rounds) == 15
    met = [pair for matches in rounds for pair in matches]
    assert len(set(met)) == len(met) and all(sum(rank in pair for pair in met) == 15 for rank in range(64))


def test_the_help_has_the_limits_of_the_code() -> None:
    for said in (
        f"{verdict.GPU:g} times slower than the median of the same GPU ({verdict.CPU:g} times, of a processor)",
        f"partner {verdict.NODE_LINK:g} times slower than the others' median; of a pair, {verdict.PAIR_LINK:g} times",
        f"storage {verdict.STORE:g} times slower, and below {verdict.ENOUGH / 1e9:g} GB/s",
        f"more than {verdict.CLOCK_SECONDS:g} s off; less than {verdict.FREE_BYTES / 1e9:g} GB free",
        f"{verdict.FREE_MEMORY * 100:g} % of a GPU's memory",
    ):
        assert said in _EPILOG
