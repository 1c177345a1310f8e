"""Nodes that meet over a real store: all come, one does not, one differs, one leaves; and what they say at the end."""

import json
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.cluster.launch import _wait
from pipeline.cluster.node_card import SKEW_REFUSE, Card, mismatch, unreachable
from pipeline.cluster.rendezvous import RollCall
from pipeline.cluster.topology import Topology
from pipeline.errors import ConfigError, NodeError
from pipeline.fault_tolerance import stop
from pipeline.messaging.job_token import Token
from tests.support.servers import free_port

CARD = Card(host="n0", processes=2, config="config", code="code", time=time.time())
TOKEN = Token("0123456789abcdef" * 2)


@pytest.fixture
def nodes() -> Callable[[int], list[RollCall]]:
    port = free_port()
    names = ("n0", "n1", "n2")
    return lambda count: [
        RollCall(Topology(nodes=count, rank=rank, address="127.0.0.1", port=port, source="flags", hosts=names[:count]), TOKEN)
        for rank in range(count)
    ]


def together(calls: list[Callable[[], Any]]) -> list[Future[Any]]:
    with ThreadPoolExecutor(len(calls)) as pool:
        return [pool.submit(call) for call in calls]


def meet(roll: RollCall, card: Card, patience: float = 30, identity: dict[str, Any] | None = None) -> Callable[[], Any]:
    return lambda: roll.meet(card, patience, identity)


@pytest.mark.long
def test_all_come_and_have_node_0s_identity(nodes: Callable[[int], list[RollCall]]) -> None:
    rolls = nodes(3)
    cards = [replace(CARD, host=f"n{i}", time=time.time()) for i in range(3)]
    answers = together([meet(roll, card, identity={"uid": i}) for i, (roll, card) in enumerate(zip(rolls, cards, strict=True))])
    assert [a.result().identity for a in answers] == [{"uid": 0}] * 3
    assert not any(roll.others_have_ended() for roll in rolls)
    # Each ends in its own way, and all hear of all.
    ends = together([lambda roll=roll, i=i: roll.end({"state": i}) for i, roll in enumerate(rolls)])  # type: ignore[misc]
    assert [[json.loads(end)["state"] for end in e.result()] for e in ends] == [[1, 2], [0, 2], [0, 1]]


@pytest.mark.long
def test_a_node_that_does_not_come_is_named_on_those_that_did(nodes: Callable[[int], list[RollCall]]) -> None:
    rolls = nodes(3)
    began = time.monotonic()
    answers = together([meet(rolls[0], CARD, 2), meet(rolls[2], replace(CARD, host="n2", time=time.time()), 60)])
    for answer in answers:
        with pytest.raises(NodeError, match=r"of 3 nodes, 1 \(n1\) did not come within 2 s.*127\.0\.0\.1"):
            answer.result()
    assert time.monotonic() - began < 30  # the node that came does not wait for its own patience


@pytest.mark.long
def test_node_0_that_does_not_come_is_named_with_its_address(nodes: Callable[[int], list[RollCall]]) -> None:
    with pytest.raises(NodeError, match=r"node 0 did not answer at 127\.0\.0\.1:\d+ within 1 s"):
        nodes(2)[1].meet(CARD, 1)


@pytest.mark.long
def test_nodes_that_do_not_fit_fail_alike(nodes: Callable[[int], list[RollCall]]) -> None:
    rolls = nodes(2)
    answers = together([meet(rolls[0], CARD), meet(rolls[1], replace(CARD, host="n1", code="other", time=time.time()))])
    for answer in answers:
        with pytest.raises(ConfigError, match=r"node 1 \(n1\) has other code than node 0 \(n0\)"):
            answer.result()


def test_a_port_that_is_taken_is_named(nodes: Callable[[int], list[RollCall]]) -> None:
    roll = nodes(2)[0]
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", roll.topology.port))
        taken.listen()
        with pytest.raises(NodeError, match=rf"port {roll.topology.port} of node 0 is taken \(.*\): add --main-port PORT"):
            roll.meet(CARD, 5)


def test_a_name_that_only_its_own_machine_knows_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    monkeypatch.setattr(socket, "gethostname", lambda: "127.0.1.1")  # as Debian's /etc/hosts has it
    assert unreachable("127.0.0.1") == unreachable("localhost") == ""  # all nodes are this machine
    told = unreachable("10.0.0.1")
    assert told.startswith("127.0.1.1 is 127.0.1.1 (its interfaces: ")
    cards = {0: replace(CARD, host="n0"), 1: replace(CARD, host="n1", unreachable=told)}
    assert f"node 1 (n1) has a name that means only itself: {told}; set the variable GLOO_SOCKET_IFNAME" in mismatch(
        cards, {0: 0.0, 1: 0.0}
    )
    monkeypatch.setattr(socket, "gethostname", lambda: "no.such.host.invalid")
    assert "no.such.host.invalid is 127.0.0.1" in unreachable("n0")
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth0")
    assert unreachable("10.0.0.1") == ""


@pytest.mark.long
@pytest.mark.parametrize("joined", [False, True])
def test_workers_that_are_deserted_are_ended(joined: bool, nodes: Callable[[int], list[RollCall]], tmp_path: Path) -> None:
    """Before they have joined there is nothing to save; after that they have their time, and a signal that they note."""
    rolls, status = nodes(2), tmp_path / "status.json"
    together([meet(rolls[0], CARD), meet(rolls[1], replace(CARD, host="n1", time=time.time()))])
    if joined:
        status.write_text("{}")
    thread = threading.Thread(target=rolls[1].end, args=({"state": "crashed"},))
    thread.start()
    with subprocess.Popen(["sleep", "100"]) as child:
        grace = 0 if joined else 1000
        assert _wait(child, rolls[0], grace, status) == (-signal.SIGTERM if joined else -signal.SIGKILL, True)
    assert [json.loads(end)["state"] for end in rolls[0].end({"state": "torn"})] == ["crashed"]
    thread.join()


@pytest.mark.long
@pytest.mark.parametrize("leaver", [0, 1])
def test_nobody_waits_for_a_node_that_is_stopped_meanwhile(leaver: int, nodes: Callable[[int], list[RollCall]]) -> None:
    rolls = nodes(3)  # node 2 never comes
    outcome: dict[str, BaseException] = {}

    def other() -> None:
        try:
            rolls[1 - leaver].meet(replace(CARD, host="other", time=time.time()), 60)
        except NodeError as error:
            outcome["error"] = error

    thread = threading.Thread(target=other)
    thread.start()
    timer = threading.Timer(2.0, os.kill, (os.getpid(), signal.SIGTERM))
    timer.start()
    with pytest.raises(SystemExit) as left, stop.at_once():
        rolls[leaver].meet(replace(CARD, host="leaver", time=time.time()), 60)
    thread.join(20)
    assert left.value.code == 75 and not thread.is_alive()
    assert f"node {leaver} (leaver) was stopped before training began" in str(outcome["error"])


@pytest.mark.long
def test_the_end_of_one_node_is_seen_by_the_other(nodes: Callable[[int], list[RollCall]]) -> None:
    rolls = nodes(2)
    together([meet(rolls[0], CARD), meet(rolls[1], replace(CARD, host="n1", time=time.time()))])
    thread = threading.Thread(target=rolls[1].end, args=({"state": "crashed"},))
    thread.start()
    deadline = time.monotonic() + 20
    while not rolls[0].others_have_ended():
        assert time.monotonic() < deadline
    assert [json.loads(end)["state"] for end in rolls[0].end({"state": "stopped"})] == ["crashed"]
    thread.join()


@given(st.sampled_from(["processes", "config", "code", "skew", ""]), st.integers(1, 7))
def test_what_differs_is_named_with_its_node(what: str, rank: int) -> None:
    cards = {i: replace(CARD, host=f"n{i}") for i in range(8)}
    skews = dict.fromkeys(range(8), 0.0)
    if what == "skew":
        skews[rank] = -SKEW_REFUSE - 1
    elif what:
        cards[rank] = replace(cards[rank], **{what: 4 if what == "processes" else "other"})
    found = mismatch(cards, skews)
    said = {"processes": "4 processes", "config": "another configuration", "code": "other code", "skew": "the clock of", "": ""}
    assert said[what] in found and bool(found) == bool(what)
    assert not what or f"node {rank} (n{rank})" in found
