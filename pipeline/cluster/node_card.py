"""What a node shows of itself before a training on several, and what makes two of them unfit for each other."""

import contextlib
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import pydantic

from pipeline.messaging.loopback import is_loopback
from pipeline.wording import printable

SKEW_WARN, SKEW_REFUSE = 5.0, 300.0
"""Seconds between a node's clock and node 0's: worth a line; too near to the 15 minutes after which stores refuse requests."""

LINE = 2000
Line = Annotated[str, pydantic.Field(max_length=LINE)]
Name = Annotated[str, pydantic.Field(max_length=300)]


@dataclass(frozen=True, kw_only=True)
class Card:
    """What a node shows when the roll is called."""

    host: Name
    processes: int
    """Workers that it would start."""
    config: Name
    """sha256 of the resolved configuration."""
    code: Name
    """sha256 of the packages' sources."""
    time: float
    """Its clock when it came, in seconds since the epoch."""
    nonce: Name = ""
    unreachable: Line = ""
    """The address of its name and its interfaces, where Gloo would take an address that no other node reaches."""


def mismatch(cards: Mapping[int, Card], skews: Mapping[int, float]) -> str:
    """Why these nodes cannot train together; empty if they can."""
    first = cards[0]
    for rank, card in sorted(cards.items()):
        where = f"node {rank} ({printable(card.host)})"
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
    if os.environ.get("GLOO_SOCKET_IFNAME") or not is_loopback(address) or is_loopback(main):
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
