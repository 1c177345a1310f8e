"""What every node does in an examination of the cluster: it waits for orders of node 0, measures, and answers."""

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from datetime import timedelta
from itertools import count
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter
from torch.distributed import Store, TCPStore  # type: ignore[attr-defined]

from pipeline.cluster.node_card import Line
from pipeline.cluster.topology import Topology
from pipeline.doctor.allreduce import PAIR_SECONDS, all_reduce_rate
from pipeline.doctor.node import NodeFaultInjection, NodeReport, Places, probe
from pipeline.errors import ConfigError, NodeError
from pipeline.messaging.job_token import Token
from pipeline.messaging.mailbox_client import MailLost
from pipeline.messaging.store_relay import Exchange, reach
from pipeline.tracking.mlflow_errors import first_line
from pipeline.untrusted import parse

Ranks = Annotated[list[int], Field(max_length=100_000)]
_REPORT = TypeAdapter(NodeReport)
_PROBE_SECONDS = 60.0
"""What a node may take for its own part, beyond the time of its stores."""
GROUP_SECONDS = PAIR_SECONDS + 20.0
ROUNDS_SECONDS = 120.0
"""After which no more pairs begin."""
CLOCK_SECONDS = 15.0
"""What a node may take to say its time: it has nothing else to do."""
FAREWELL_SECONDS = 5.0
TRIES = 3
"""What looks slow is measured so often."""


@dataclass(frozen=True)
class SurveyPlan:
    """What is to be measured."""

    places: Places
    seconds: float = 20.0
    """For measuring: a store gets a quarter of it."""
    wait: float = 60.0
    """From the start of node 0 until the last node must have reported."""

    @property
    def probe_seconds(self) -> float:
        stores = len(self.places.written) + len(self.places.read)
        return _PROBE_SECONDS + stores * (self.seconds / 4 + 15)

    @property
    def total_seconds(self) -> float:
        """After which a node has been forgotten."""
        return self.wait + TRIES * (self.probe_seconds + ROUNDS_SECONDS + 2 * GROUP_SECONDS)


@dataclass(frozen=True)
class SurveyOrder:
    """What node 0 asks some nodes to do."""

    task: Literal["clock", "probe", "link", "end"]
    ranks: Ranks
    groups: Annotated[list[Ranks], Field(max_length=100_000)] = ()  # type: ignore[assignment]
    """Of `link`: which nodes talk to each other."""
    cuda: bool = False


@dataclass(frozen=True)
class SurveyAnswer:
    """What a node says to that: a value, or why there is none."""

    value: Any = None
    failed: Line = ""


def follow(topology: Topology, plan: SurveyPlan, token: Token) -> tuple[int, bool]:
    """On every other node: the exit code, and whether this process can end as usual. Raises ConfigError, NodeError."""
    time.sleep(NodeFaultInjection(topology.rank).value("late", 0.0))
    exchange = _connect(topology, plan, token)
    failure: list[Exception] = []
    part = threading.Thread(target=take_part, args=(topology, plan, exchange, failure), daemon=True)
    part.start()
    deadline = time.monotonic() + plan.total_seconds
    with _while_node_0_is_there(topology), closing(exchange.mail()) as mail:
        while not mail.check("end") and not failure:  # whatever the part is stuck in
            if time.monotonic() > deadline:
                raise NodeError(f"node 0 ({topology.address}) has not come to an end within {plan.total_seconds:.0f} s")
            time.sleep(0.1)
        part.join(1.0)  # before node 0 goes: it reads its last order, or finds that it has come too late
        if not failure:
            code = parse(int, mail.get("end", FAREWELL_SECONDS), "node 0's last word", error=NodeError)
            mail.set(f"bye/{topology.rank}", "")
            return code, not part.is_alive()
    raise failure[0]


def take_part(topology: Topology, plan: SurveyPlan, exchange: Exchange, failure: list[Exception]) -> None:
    """Do what node 0 orders, until it ends; if that goes wrong, `failure` has why."""
    try:
        _serve(topology, plan, exchange)
    except Exception as error:
        failure.append(error)


def _serve(topology: Topology, plan: SurveyPlan, exchange: Exchange) -> None:
    rank, host, fault = topology.rank, socket.gethostname(), NodeFaultInjection(topology.rank)
    with _while_node_0_is_there(topology), closing(exchange.mail()) as mail:
        if mail.add(f"joined/{rank}") > 1:
            raise ConfigError(f"two processes say that they are node {rank}: give each node a --node-rank of its own")
        store = TCPStore("127.0.0.1", exchange.store_port, is_master=False, timeout=timedelta(seconds=plan.total_seconds))
        mail.set(f"here/{rank}", host)
        if rank not in parse(list[int], mail.get("roster", plan.total_seconds), "node 0's roster", error=NodeError):
            raise NodeError(f"node {rank} ({host}) came too late: node 0 waits {plan.wait:.0f} s (--wait)")
        for number in count():
            order = parse(SurveyOrder, mail.get(f"order/{number}", plan.total_seconds), "node 0's order", error=NodeError)
            if order.task == "end":
                return
            if rank in order.ranks:
                if fault.value("silent", 0.0):
                    threading.Event().wait()
                try:
                    answer = SurveyAnswer(_answer(order, number, store, rank=rank, plan=plan, fault=fault))
                except Exception as error:  # of CUDA, say: node 0 shall know it at once
                    answer = SurveyAnswer(failed=f"{type(error).__name__}: {first_line(error)}")
                mail.set(f"answer/{number}/{rank}", json.dumps(asdict(answer)))


def _connect(topology: Topology, plan: SurveyPlan, token: Token) -> Exchange:
    try:
        return reach(topology.address, topology.port, token, time.monotonic() + plan.wait)
    except MailLost as error:
        where = f"{topology.address}:{topology.port}"
        raise NodeError(f"node 0 does not answer at {where} within {plan.wait:.0f} s ({first_line(error)})") from None


@contextmanager
def _while_node_0_is_there(topology: Topology) -> Iterator[None]:
    try:
        yield
    except (MailLost, TimeoutError, RuntimeError) as error:  # a connection that closed
        where = f"{topology.address}:{topology.port}"
        raise NodeError(f"node 0 at {where} has gone ({first_line(error)})") from None


def _answer(order: SurveyOrder, number: int, store: Store, rank: int, plan: SurveyPlan, fault: NodeFaultInjection) -> Any:
    if order.task == "clock":
        return fault.now()
    if order.task == "probe":
        return _REPORT.dump_python(probe(plan.places, plan.seconds / 4, fault), mode="json")
    (group,) = (ranks for ranks in order.groups if rank in ranks)
    try:
        return all_reduce_rate(store, f"group/{number}/{group[0]}", ranks=group, rank=rank, cuda=order.cuda, fault=fault)
    except RuntimeError as error:
        return first_line(error)
