"""One process on every node measures, and node 0 asks, gathers and names the bad ones. Nothing waits without a limit.

All talk by letters in the mailbox of node 0 (`order/N` -> `answer/N/RANK`). Node 0 asks from its main thread and takes part
from another (`pipeline.doctor.node_part`), as a node like the others; a node that fails to answer is not asked again, so that
one that is stuck in a driver or a mount costs one limit.
"""

import json
import socket
import threading
import time
from collections.abc import Callable, Collection
from dataclasses import replace
from itertools import count
from typing import Any, TypeVar

from pipeline import exit_codes
from pipeline.cluster.topology import Topology
from pipeline.doctor.allreduce import tournament
from pipeline.doctor.node import NodeFaultInjection, NodeReport
from pipeline.doctor.node_part import (
    CLOCK_SECONDS,
    FAREWELL_SECONDS,
    GROUP_SECONDS,
    ROUNDS_SECONDS,
    TRIES,
    SurveyAnswer,
    SurveyPlan,
    take_part,
)
from pipeline.doctor.verdict import Finding, Gathered, judge_nodes
from pipeline.errors import ConfigError, DataError
from pipeline.messaging import job_token
from pipeline.messaging.job_token import Token
from pipeline.messaging.mailbox_client import Mail
from pipeline.messaging.store_relay import main_exchange
from pipeline.tracking.mlflow_errors import first_line
from pipeline.untrusted import parse
from pipeline.wording import printable

T = TypeVar("T")
_LOOKS = 5


def lead(topology: Topology, plan: SurveyPlan, token: Token) -> tuple[Gathered, list[Finding], Callable[[int], bool]]:
    """On node 0: everything that was found; and how to end: called with the exit code of all nodes, it tells them, and says
    whether this process can end as usual (its own measurements may be stuck).

    Raises ConfigError if the port is taken or the address is not this node's.
    """
    secret = token.make() if topology.nodes > 1 else job_token.new()
    try:
        exchange = main_exchange(topology.address, topology.port, secret)
    except OSError as error:
        token.forget()
        raise ConfigError(
            f"port {topology.port} of {socket.gethostname()} (node 0) is taken ({first_line(error)}): "
            f"choose another with --main-port, or as {topology.source} has it"
        ) from None
    failure: list[Exception] = []
    part = threading.Thread(target=take_part, args=(topology, plan, exchange, failure), daemon=True)
    part.start()
    leader = _Leader(exchange.mail(), topology, NodeFaultInjection(0))
    leader.call(plan.wait, lambda: bool(failure))
    if failure:
        leader.end(getattr(failure[0], "exit_code", exit_codes.CRASHED.number))
        token.forget()
        raise failure[0]
    for _ in range(TRIES):
        leader.measure(plan)
        findings = judge_nodes(leader.found)
        if not any(finding.measured for finding in findings):
            break  # else the same again: what is slow by chance is not slow every time

    def end(code: int) -> bool:
        leader.end(code)
        token.forget()
        part.join(FAREWELL_SECONDS)
        return not part.is_alive()

    return leader.found, findings, end


class _Leader:
    """Asks nodes, and knows what they answered."""

    def __init__(self, mail: Mail, topology: Topology, fault: NodeFaultInjection):
        self._mail, self._topology, self._fault = mail, topology, fault
        self._orders = count()
        self._present: list[int] = []
        self._came: list[int] = []
        self.found = Gathered(nodes=topology.nodes, hosts=dict(enumerate(topology.hosts)))

    def call(self, seconds: float, broken: Callable[[], bool]) -> None:
        """Wait for all nodes, and go on with those that have come."""
        everyone = range(self._topology.nodes)
        came = self._among({rank: f"here/{rank}" for rank in everyone}, seconds, broken)
        for rank, host in came.items():
            self.found.hosts.setdefault(rank, printable(host)[:300])
        for rank in everyone:
            if rank not in came:
                self.found.absent[rank] = f"did not report within {seconds:.0f} s"
        self._present, self._came = sorted(came), sorted(came)
        self._mail.set("roster", json.dumps(self._present))

    def measure(self, plan: SurveyPlan) -> None:
        """Everything, of those who are there. What was measured before is kept where it was better."""
        found = self.found
        for rank in list(self._present):
            if (clock := self._clock(rank)) is not None:
                found.clocks[rank] = clock
        for rank, report in self.ask("probe", NodeReport, self._present, plan.probe_seconds).items():
            found.reports[rank] = _better(found.reports[rank], report) if rank in found.reports else report
        found.cuda = bool(found.reports) and all(report.gpus for report in found.reports.values())
        end = time.monotonic() + ROUNDS_SECONDS
        for matches in tournament(self._present):
            if time.monotonic() > end:
                break
            pairs = [pair for pair in matches if set(pair) <= set(self._present)]
            busy = [rank for pair in pairs for rank in pair]
            answers = self.ask("link", float | str, busy, GROUP_SECONDS, groups=pairs, cuda=found.cuda)
            for pair in pairs:
                found.pairs[pair] = _best(found.pairs.get(pair), *(answers.get(rank, "no answer") for rank in pair))
        if len(self._present) > 1:
            answers = self.ask("link", float | str, self._present, GROUP_SECONDS, groups=[self._present], cuda=found.cuda)
            found.together = _best(found.together, *answers.values())

    def end(self, code: int) -> None:
        """Tell all with which code to end, and stay until they know."""
        self._order("end", range(self._topology.nodes))
        self._mail.set("end", str(code))
        self._among({rank: f"bye/{rank}" for rank in self._came if rank}, FAREWELL_SECONDS)

    def ask(self, task: str, kind: Any, ranks: Collection[int], seconds: float, **arguments: Any) -> dict[int, Any]:
        """What each of `ranks` answers, a `kind`. One that does not within `seconds`, or fails, is absent from then on."""
        number = self._order(task, ranks, **arguments)
        said = self._among({rank: f"answer/{number}/{rank}" for rank in ranks}, seconds)
        answers = {}
        for rank in list(ranks):
            if rank not in said:
                self.found.absent[rank] = f"reported, but did not answer when asked for `{task}` within {seconds:.0f} s"
            else:
                try:
                    answer = parse(SurveyAnswer, said[rank], f"its answer to `{task}`")
                    if not answer.failed:
                        answers[rank] = parse(kind, json.dumps(answer.value), f"its answer to `{task}`")
                        continue
                    self.found.absent[rank] = f"failed when asked for `{task}`: {printable(answer.failed)}"
                except DataError as error:
                    self.found.absent[rank] = str(error)
            self._present.remove(rank)
        return answers

    def _clock(self, rank: int) -> tuple[float, float] | None:
        """Seconds that a node's clock is ahead of ours, and half of the quickest round trip."""
        looks = []
        for _ in range(_LOOKS):
            began = self._fault.now()
            if not (answer := self.ask("clock", float, [rank], CLOCK_SECONDS)):
                return None
            ended = self._fault.now()
            looks.append(((ended - began) / 2, answer[rank] - (began + ended) / 2))
        doubt, ahead = min(looks)
        return ahead, doubt

    def _order(self, task: str, ranks: Collection[int], **arguments: Any) -> int:
        number = next(self._orders)
        self._mail.set(f"order/{number}", json.dumps({"task": task, "ranks": list(ranks)} | arguments))
        return number

    def _among(self, keys: dict[int, str], seconds: float, broken: Callable[[], bool] = lambda: False) -> dict[int, str]:
        """The values of those keys that are there in time."""
        end, values = time.monotonic() + seconds, dict[int, str]()
        pause = 0.0005
        while len(values) < len(keys) and not broken():
            for rank in keys.keys() - values.keys():
                if (value := self._mail.find(keys[rank])) is not None:
                    values[rank] = value
            if time.monotonic() > end:
                break
            time.sleep(pause := min(0.05, pause * 1.5))
        return values


def _best(*rates: float | str | None) -> float | str:
    """The highest rate, or the last error if there is none. Both ends of a link say the same rate."""
    known = [rate for rate in rates if isinstance(rate, float)]
    errors = [rate for rate in rates if isinstance(rate, str)]
    return max(known) if known else errors[-1] if errors else "no answer"


def _better(old: NodeReport, new: NodeReport) -> NodeReport:
    """Both measurements of a node, the better of each figure."""
    if len(old.devices) != len(new.devices):  # a GPU has gone meanwhile
        return new
    devices = tuple(
        replace(b, bf16=max(a.bf16, b.bf16), fp32=max(a.fp32, b.fp32), free=a.free)
        for a, b in zip(old.devices, new.devices, strict=True)
    )
    stores = tuple(
        a if b.error else b if a.error else replace(b, write=_most(a.write, b.write), read=_most(a.read, b.read))
        for a, b in zip(old.stores, new.stores, strict=True)
    )
    return replace(new, devices=devices, stores=stores)


def _most(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else max(a, b)
