"""One process on every node measures, and node 0 asks, gathers and names the bad ones. Nothing waits without a limit.

All talk over a TCPStore of node 0 (`order/N` -> `answer/N/RANK`). Node 0 asks from its main thread and takes part from another,
as a node like the others; a node that fails to answer is not asked again, so that one that is stuck in a driver or a mount
costs one limit.
"""

import json
import socket
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from itertools import count
from typing import Any

import pydantic
from torch.distributed import Store, TCPStore  # type: ignore[attr-defined]

from pipeline.cluster_verdict import Finding, Gathered, judge
from pipeline.errors import ConfigError, NodeError
from pipeline.links import PAIR_SECONDS, all_reduce_rate, tournament
from pipeline.mlflow_errors import first_line
from pipeline.node_probe import Fault, Places, Report, probe
from pipeline.topology import Topology

_REPORT: "pydantic.TypeAdapter[Report]" = pydantic.TypeAdapter(Report)
_PROBE_SECONDS = 60.0
"""What a node may take for its own part, beyond the time of its stores."""
_GROUP_SECONDS = PAIR_SECONDS + 20.0
_ROUNDS_SECONDS = 120.0
"""After which no more pairs begin."""
_CLOCK_SECONDS = 15.0
"""What a node may take to say its time: it has nothing else to do."""
_FAREWELL_SECONDS = 5.0
_LOOKS = 5
_TRIES = 3


@dataclass(frozen=True)
class Plan:
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
        return self.wait + _TRIES * (self.probe_seconds + _ROUNDS_SECONDS + 2 * _GROUP_SECONDS)


def lead(topology: Topology, plan: Plan) -> tuple[Gathered, list[Finding], Callable[[int], bool]]:
    """On node 0: everything that was found; and how to end: called with the exit code of all nodes, it tells them, and says
    whether this process can end as usual (its own measurements may be stuck).

    Raises ConfigError if the port is taken or the address is not this node's.
    """
    limit = timedelta(seconds=plan.total_seconds)
    try:
        with socket.socket() as trial:  # TCPStore would wait for a port that is taken
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind(("", topology.port))
        store = TCPStore("127.0.0.1", topology.port, is_master=True, wait_for_workers=False, timeout=limit)
    except (OSError, RuntimeError) as error:
        raise ConfigError(
            f"port {topology.port} of {socket.gethostname()} (node 0) is taken ({first_line(error)}): "
            f"choose another with --main-port, or as {topology.source} has it"
        ) from None
    failure: list[Exception] = []
    part = threading.Thread(target=_take_part, args=(topology, plan, failure), daemon=True)
    part.start()
    leader = _Leader(store, topology, Fault(0))
    leader.call(plan.wait, lambda: bool(failure))
    if failure:
        leader.end(getattr(failure[0], "exit_code", 1))
        raise failure[0]
    for _ in range(_TRIES):
        leader.measure(plan)
        findings = judge(leader.found)
        if not any(finding.measured for finding in findings):
            break  # else the same again: what is slow by chance is not slow every time

    def end(code: int) -> bool:
        leader.end(code)
        part.join(_FAREWELL_SECONDS)
        return not part.is_alive()

    return leader.found, findings, end


def follow(topology: Topology, plan: Plan) -> tuple[int, bool]:
    """On every other node: the exit code, and whether this process can end as usual. Raises ConfigError, NodeError."""
    time.sleep(Fault(topology.rank).value("late", 0.0))
    store = _connect(topology, plan)
    failure: list[Exception] = []
    part = threading.Thread(target=_take_part, args=(topology, plan, failure), daemon=True)
    part.start()
    deadline = time.monotonic() + plan.total_seconds
    with _while_node_0_is_there(topology):
        while not store.check(["end"]) and not failure:  # whatever the part is stuck in
            if time.monotonic() > deadline:
                raise NodeError(f"node 0 ({topology.address}) has not come to an end within {plan.total_seconds:.0f} s")
            time.sleep(0.1)
        part.join(1.0)  # before node 0 goes: it reads its last order, or finds that it has come too late
        if not failure:
            code = int(store.get("end"))
            store.set(f"bye/{topology.rank}", "")
            return code, not part.is_alive()
    raise failure[0]


class _Leader:
    """Asks nodes, and knows what they answered."""

    def __init__(self, store: TCPStore, topology: Topology, fault: Fault):
        self._store, self._topology, self._fault = store, topology, fault
        self._orders = count()
        self._present: list[int] = []
        self._came: list[int] = []
        self.found = Gathered(topology.nodes, dict(enumerate(topology.hosts)))

    def call(self, seconds: float, broken: Callable[[], bool]) -> None:
        """Wait for all nodes, and go on with those that have come."""
        everyone = range(self._topology.nodes)
        came = self._among({rank: f"here/{rank}" for rank in everyone}, seconds, broken)
        for rank, host in came.items():
            self.found.hosts.setdefault(rank, host)
        for rank in everyone:
            if rank not in came:
                self.found.absent[rank] = f"did not report within {seconds:.0f} s"
        self._present, self._came = sorted(came), sorted(came)
        self._store.set("roster", json.dumps(self._present))

    def measure(self, plan: Plan) -> None:
        """Everything, of those who are there. What was measured before is kept where it was better."""
        found = self.found
        for rank in list(self._present):
            if (clock := self._clock(rank)) is not None:
                found.clocks[rank] = clock
        for rank, answer in self.ask("probe", self._present, plan.probe_seconds).items():
            report = _REPORT.validate_python(answer)
            found.reports[rank] = _better(found.reports[rank], report) if rank in found.reports else report
        found.cuda = bool(found.reports) and all(report.gpus for report in found.reports.values())
        end = time.monotonic() + _ROUNDS_SECONDS
        for matches in tournament(self._present):
            if time.monotonic() > end:
                break
            pairs = [pair for pair in matches if set(pair) <= set(self._present)]
            busy = [rank for pair in pairs for rank in pair]
            answers = self.ask("link", busy, _GROUP_SECONDS, groups=pairs, cuda=found.cuda)
            for pair in pairs:
                found.pairs[pair] = _best(found.pairs.get(pair), *(answers.get(rank, "no answer") for rank in pair))
        if len(self._present) > 1:
            answers = self.ask("link", self._present, _GROUP_SECONDS, groups=[self._present], cuda=found.cuda)
            found.together = _best(found.together, *answers.values())

    def end(self, code: int) -> None:
        """Tell all with which code to end, and stay until they know."""
        self._order("end", range(self._topology.nodes))
        self._store.set("end", str(code))
        self._among({rank: f"bye/{rank}" for rank in self._came if rank}, _FAREWELL_SECONDS)

    def ask(self, task: str, ranks: Collection[int], seconds: float, **arguments: Any) -> dict[int, Any]:
        """What each of `ranks` answers. One that does not within `seconds`, or fails, is absent from then on."""
        number = self._order(task, ranks, **arguments)
        said = self._among({rank: f"answer/{number}/{rank}" for rank in ranks}, seconds)
        answers = {rank: json.loads(text) for rank, text in said.items()}
        for rank in list(ranks):
            if rank not in answers:
                self.found.absent[rank] = f"reported, but did not answer when asked for `{task}` within {seconds:.0f} s"
            elif "failed" in answers[rank]:
                self.found.absent[rank] = f"failed when asked for `{task}`: {answers[rank]['failed']}"
            if rank in self.found.absent:
                self._present.remove(rank)
        return {rank: answer["value"] for rank, answer in answers.items() if "value" in answer}

    def _clock(self, rank: int) -> tuple[float, float] | None:
        """Seconds that a node's clock is ahead of ours, and half of the quickest round trip."""
        looks = []
        for _ in range(_LOOKS):
            began = self._fault.now()
            if not (answer := self.ask("clock", [rank], _CLOCK_SECONDS)):
                return None
            ended = self._fault.now()
            looks.append(((ended - began) / 2, answer[rank] - (began + ended) / 2))
        doubt, ahead = min(looks)
        return ahead, doubt

    def _order(self, task: str, ranks: Collection[int], **arguments: Any) -> int:
        number = next(self._orders)
        self._store.set(f"order/{number}", json.dumps({"task": task, "ranks": list(ranks)} | arguments))
        return number

    def _among(self, keys: dict[int, str], seconds: float, broken: Callable[[], bool] = lambda: False) -> dict[int, str]:
        """The values of those keys that are there in time."""
        end, values = time.monotonic() + seconds, dict[int, str]()
        pause = 0.0005
        while len(values) < len(keys) and not broken():
            for rank in keys.keys() - values.keys():
                if self._store.check([keys[rank]]):
                    values[rank] = self._store.get(keys[rank]).decode()
            if time.monotonic() > end:
                break
            time.sleep(pause := min(0.05, pause * 1.5))
        return values


def _take_part(topology: Topology, plan: Plan, failure: list[Exception]) -> None:
    """Do what node 0 orders, until it ends; if that goes wrong, `failure` has why."""
    try:
        _serve(topology, plan)
    except Exception as error:
        failure.append(error)


def _serve(topology: Topology, plan: Plan) -> None:
    rank, host, fault = topology.rank, socket.gethostname(), Fault(topology.rank)
    store = _connect(topology, plan)
    with _while_node_0_is_there(topology):
        if store.add(f"joined/{rank}", 1) > 1:
            raise ConfigError(f"two processes say that they are node {rank}: give each node a --node-rank of its own")
        store.set(f"here/{rank}", host)
        if rank not in json.loads(store.get("roster")):
            raise NodeError(f"node {rank} ({host}) came too late: node 0 waits {plan.wait:.0f} s (--wait)")
        for number in count():
            order = json.loads(store.get(f"order/{number}"))
            if order["task"] == "end":
                return
            if rank in order["ranks"]:
                if fault.value("silent", 0.0):
                    threading.Event().wait()
                try:
                    answer = {"value": _answer(order, number, store, rank, plan, fault)}
                except Exception as error:  # of CUDA, say: node 0 shall know it at once
                    answer = {"failed": f"{type(error).__name__}: {first_line(error)}"}
                store.set(f"answer/{number}/{rank}", json.dumps(answer))


def _connect(topology: Topology, plan: Plan) -> TCPStore:
    where = f"{topology.address}:{topology.port}"
    try:
        store = TCPStore(topology.address, topology.port, is_master=False, timeout=timedelta(seconds=plan.wait))
    except RuntimeError as error:
        if topology.rank == 0:
            raise ConfigError(f"node 0 cannot reach itself at {where}: is that its address? ({first_line(error)})") from None
        raise NodeError(f"node 0 does not answer at {where} within {plan.wait:.0f} s ({first_line(error)})") from None
    store.set_timeout(timedelta(seconds=plan.total_seconds))
    return store


@contextmanager
def _while_node_0_is_there(topology: Topology) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # a connection that closed
        where = f"{topology.address}:{topology.port}"
        raise NodeError(f"node 0 at {where} has gone ({first_line(error)})") from None


def _answer(order: dict[str, Any], number: int, store: Store, rank: int, plan: Plan, fault: Fault) -> Any:
    if order["task"] == "clock":
        return fault.now()
    if order["task"] == "probe":
        return _REPORT.dump_python(probe(plan.places, plan.seconds / 4, fault), mode="json")
    (group,) = (ranks for ranks in order["groups"] if rank in ranks)
    try:
        return all_reduce_rate(store, f"group/{number}/{group[0]}", group, rank, order["cuda"], fault)
    except RuntimeError as error:
        return first_line(error)


def _best(*rates: float | str | None) -> float | str:
    """The highest rate, or the last error if there is none. Both ends of a link say the same rate."""
    known = [rate for rate in rates if isinstance(rate, float)]
    errors = [rate for rate in rates if isinstance(rate, str)]
    return max(known) if known else errors[-1] if errors else "no answer"


def _better(old: Report, new: Report) -> Report:
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
