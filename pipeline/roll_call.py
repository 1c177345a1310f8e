"""The nodes of one start meet before their workers do, and part after them, over a TCPStore on the main node.

Before: each shows a card with its code, configuration, processes and clock. Node 0 compares them, and either all go on or all
fail with the same line; a node that does not come is named. After: each says how its workers ended, because what ended a
run is seen on one node only, and a scheduler looks at the exit code of each.
"""

import contextlib
import ipaddress
import json
import os
import socket
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from typing import Any

from torch.distributed import DistError, DistNetworkError, DistStoreError, TCPStore  # type: ignore[attr-defined]

from pipeline.errors import ConfigError, NodeError
from pipeline.topology import Topology

SKEW_WARN, SKEW_REFUSE = 5.0, 300.0
"""Seconds between a node's clock and node 0's: worth a line; too near to the 15 minutes after which stores refuse requests."""

_POLL = 0.2
_PARTING = 20.0
"""Seconds that nodes, ending at about the same moment, wait for each other's last words."""


@dataclass(frozen=True)
class Card:
    """What a node shows when the roll is called."""

    host: str
    processes: int
    """Workers that it would start."""
    config: str
    """sha256 of the resolved configuration."""
    code: str
    """sha256 of the packages' sources."""
    time: float
    """Its clock when it came, in seconds since the epoch."""
    nonce: str = ""
    unreachable: str = ""
    """The address of its name and its interfaces, where Gloo would take an address that no other node reaches."""


class RollCall:
    """Node `topology.rank` among `topology.nodes`. Node 0 keeps the store, at the port above the workers' own."""

    def __init__(self, topology: Topology):
        self.topology = topology
        self._port = topology.port + 1
        self._store: TCPStore | None = None
        self._card = Card("", 0, "", "", 0.0)

    def meet(self, card: Card, patience: float, identity: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Show `card`, and return when all nodes have come and fit together: with node 0's `identity`, on each.

        Raises ConfigError with the same message on all, or NodeError (which a scheduler may try again) if a node does not
        come within `patience` seconds, or leaves.
        """
        self._card = replace(card, nonce=uuid.uuid4().hex)
        deadline = time.monotonic() + patience
        try:
            if self.topology.rank:
                return self._answered(deadline, patience)
            self._store = self._open()
            cards, skews = self._cards(deadline)
            missing = [rank for rank in range(self.topology.nodes) if rank not in cards]
            return self._tell(
                absent=self._absent(missing, patience) if missing else self._taken(),
                config="" if missing else mismatch(cards, skews),
                warn="; ".join(f"clock of {cards[r].host} is {s:+.1f} s off" for r, s in skews.items() if abs(s) > SKEW_WARN),
                identity=dict(identity or {}),
            )
        except SystemExit:
            self._leave()
            raise

    def _tell(self, **answer: Any) -> dict[str, Any]:
        """Node 0: the same answer to all that have come. With a bad one it stays until they have read it."""
        assert self._store is not None
        unread = []
        for rank in range(1, self.topology.nodes):
            if self._store.check([f"card/{rank}"]) and not self._store.check([f"gone/{rank}"]):
                nonce = json.loads(self._store.get(f"card/{rank}"))["nonce"]
                self._store.set(f"answer/{nonce}", json.dumps(answer))
                unread.append(f"read/{nonce}")
        if answer["absent"] or answer["config"]:
            self._wait_for(unread, time.monotonic() + _PARTING)
        return _agreed(answer)

    def _wait_for(self, keys: list[str], deadline: float) -> None:
        assert self._store is not None
        while keys and not self._store.check(keys) and time.monotonic() < deadline:
            time.sleep(_POLL)

    def _leave(self) -> None:
        """A request to stop, before all have come: nobody has to wait for this node."""
        said = f"node {self.topology.rank} ({self._card.host}) was stopped before training began"
        with contextlib.suppress(DistError, NodeError):
            if self._store and self.topology.rank:
                self._store.set(f"gone/{self.topology.rank}", said)
            elif self._store:
                self._tell(absent=said, config="")

    def end(self, mine: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Say how this node's workers ended; returns what all have said, this one first, as far as they did in time."""
        ends = [dict(mine)]
        if self._store is None:
            return ends
        others = [rank for rank in range(self.topology.nodes) if rank != self.topology.rank]
        deadline = time.monotonic() + _PARTING
        with contextlib.suppress(DistError):  # node 0 has gone: with it the store
            self._store.set(f"end/{self.topology.rank}", json.dumps(ends[0]))
            while others and time.monotonic() < deadline:
                for rank in [rank for rank in others if self._store.check([f"end/{rank}"])]:
                    ends.append(json.loads(self._store.get(f"end/{rank}")))
                    others.remove(rank)
                time.sleep(_POLL)
            self._part(deadline)
        return ends

    def others_have_ended(self) -> bool:
        """Whether another node's workers have ended, or node 0 is gone."""
        if self._store is None:
            return False
        try:
            return any(self._store.check([f"end/{rank}"]) for rank in range(self.topology.nodes) if rank != self.topology.rank)
        except DistError:
            return True

    def _part(self, deadline: float) -> None:
        """Node 0 leaves last: what it keeps must be read by all."""
        assert self._store is not None
        self._store.set(f"left/{self.topology.rank}", "")
        if self.topology.rank == 0:
            came = [rank for rank in range(1, self.topology.nodes) if self._store.check([f"end/{rank}"])]
            self._wait_for([f"left/{rank}" for rank in came], deadline)

    def _open(self) -> TCPStore:
        try:
            return TCPStore("0.0.0.0", self._port, is_master=True, wait_for_workers=False)
        except (DistNetworkError, RuntimeError) as error:
            raise NodeError(
                f"port {self._port} of this node is taken ({_line(error)}): add --main-port PORT on all nodes"
            ) from None

    def _taken(self) -> str:
        """Why the workers could not listen at the main port; empty if they can. A connection that is closing is no reason."""
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("", self.topology.port))
                probe.listen()
            except OSError as error:
                return f"port {self.topology.port} of node 0 is taken ({error.strerror}): add --main-port PORT on all nodes"
        return ""

    def _cards(self, deadline: float) -> tuple[dict[int, Card], dict[int, float]]:
        """Node 0: the cards by rank of node, and by how many seconds each clock is ahead of this one's."""
        assert self._store is not None
        cards, skews = {0: self._card}, {0: 0.0}
        while len(cards) < self.topology.nodes and time.monotonic() < deadline:
            for rank in range(1, self.topology.nodes):
                if self._store.check([f"gone/{rank}"]):
                    self._tell(absent=self._store.get(f"gone/{rank}").decode(), config="")
                if rank not in cards and self._store.check([f"card/{rank}"]):
                    cards[rank] = Card(**json.loads(self._store.get(f"card/{rank}")))
                    skews[rank] = cards[rank].time - time.time()
            time.sleep(_POLL)
        return cards, skews

    def _answered(self, deadline: float, patience: float) -> dict[str, Any]:
        """Any other node: node 0's answer. It may come later than this one, and an earlier start's store may still be there."""
        reason: Exception | None = None
        while time.monotonic() < deadline:
            try:
                self._store = TCPStore(self.topology.address, self._port, is_master=False, timeout=timedelta(seconds=5))
                self._store.set(f"card/{self.topology.rank}", json.dumps(asdict(self._card) | {"time": time.time()}))
                while time.monotonic() < deadline:
                    if self._store.check([f"answer/{self._card.nonce}"]):
                        answer = json.loads(self._store.get(f"answer/{self._card.nonce}"))
                        self._store.set(f"read/{self._card.nonce}", "")
                        return _agreed(answer)
                    time.sleep(_POLL)
            except (DistNetworkError, DistStoreError) as error:
                reason = error
                time.sleep(_POLL)
        why = f" ({_line(reason)})" if reason else ""
        raise NodeError(
            f"node 0 did not answer at {self.topology.address}:{self._port} within {patience:g} s{why}: see its log, and "
            "whether this address is reached from here (--main-address, --main-port)"
        )

    def _absent(self, missing: Sequence[int], patience: float) -> str:
        hosts = self.topology.hosts
        named = ", ".join(f"{rank} ({hosts[rank]})" if rank < len(hosts) else str(rank) for rank in missing)
        return (
            f"of {self.topology.nodes} nodes, {named} did not come within {patience:g} s: see the log there, and whether "
            f"{self.topology.address}:{self._port} is reached from it"
        )


def mismatch(cards: Mapping[int, Card], skews: Mapping[int, float]) -> str:
    """Why these nodes cannot train together; empty if they can."""
    first = cards[0]
    for rank, card in sorted(cards.items()):
        where = f"node {rank} ({card.host})"
        if card.code != first.code:
            return f"{where} has other code than node 0 ({first.host}): install the same version on both"
        if card.processes != first.processes:
            return (
                f"{where} would start {card.processes} processes, node 0 ({first.host}) {first.processes}: set processes=N, "
                "or use nodes with the same number of GPUs"
            )
        if card.config != first.config:
            return (
                f"{where} has another configuration than node 0 ({first.host}): start both with the same CONFIG and key=value"
            )
        if card.unreachable:
            return (
                f"{where} has a name that means only itself: {card.unreachable}; set the variable GLOO_SOCKET_IFNAME "
                "there to the interface that the other nodes reach"
            )
        if abs(skews[rank]) > SKEW_REFUSE:
            return f"the clock of {where} is {skews[rank]:+.0f} s off that of node 0 ({first.host}): set it (chrony, ntp)"
    return ""


def unreachable(main: str) -> str:
    """Return the address and interfaces of this machine if Gloo would listen where no other node reaches it, else nothing.

    Gloo takes the address of the host's own name, which many systems make 127.0.1.1. `main` is the main node's address: at a
    loopback address all nodes are on this machine.
    """
    address = _gloo_address()
    if os.environ.get("GLOO_SOCKET_IFNAME") or not _is_loopback(address) or _is_loopback(main):
        return ""
    names = ", ".join(name for _, name in socket.if_nameindex() if name != "lo")
    return f"{socket.gethostname()} is {address} (its interfaces: {names})"


def _gloo_address() -> str:
    """The first address of this host's name that it has; without one Gloo takes the loopback."""
    with contextlib.suppress(OSError):
        for family, kind, _, _, address in socket.getaddrinfo(socket.gethostname(), None, type=socket.SOCK_STREAM):
            with contextlib.suppress(OSError), socket.socket(family, kind) as probe:
                probe.bind((address[0], 0))
                return str(address[0])
    return "127.0.0.1"


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"


def _agreed(answer: dict[str, Any]) -> dict[str, Any]:
    if answer["absent"]:
        raise NodeError(answer["absent"])
    if answer["config"]:
        raise ConfigError(answer["config"])
    return answer


def _line(error: Exception) -> str:
    return str(error).splitlines()[0][:200]
