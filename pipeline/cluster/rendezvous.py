"""The nodes of one start meet before their workers do, and part after them, by letters in the main node's mailbox.

Before: each shows a card with its code, configuration, processes and clock. Node 0 compares them, and either all go on or all
fail with the same line; a node that does not come is named. After: each says how its workers ended, because what ended a
run is seen on one node only, and a scheduler looks at the exit code of each.
"""

import contextlib
import json
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Annotated, Any, Literal

import pydantic

from pipeline.cluster.node_card import SKEW_WARN, Card, Line, Name, mismatch
from pipeline.cluster.outcome import RANKING
from pipeline.cluster.topology import Topology
from pipeline.errors import ConfigError, NodeError
from pipeline.messaging.job_token import Token
from pipeline.messaging.mailbox_client import Mail, MailLost
from pipeline.messaging.store_relay import Exchange, main_exchange, reach
from pipeline.untrusted import parse
from pipeline.wording import printable

_POLL = 0.2
_PARTING = 20.0
"""Seconds that nodes, ending at about the same moment, wait for each other's last words."""


@dataclass(frozen=True)
class Welcome:
    """What node 0 says to each that has come."""

    absent: Line = ""
    """Why the start cannot go on, though trying again may help."""
    config: Line = ""
    """Why the nodes do not fit together."""
    warn: Line = ""
    identity: dict[str, Any] = field(default_factory=dict)
    nonces: Annotated[list[Name], pydantic.Field(max_length=100_000)] = field(default_factory=list)
    """Of the cards that were agreed on, by rank: they name the letters of the end."""


@dataclass(frozen=True)
class End:
    """What a node says of the end of its workers, as `pipeline.runs.run_folder.RunState` has it."""

    state: Literal[RANKING]  # type: ignore[valid-type]
    images: Annotated[int, pydantic.Field(ge=0)]
    exit_code: Annotated[int, pydantic.Field(ge=-255, le=255)] | None
    message: Line


class RollCall:
    """Node `topology.rank` among `topology.nodes`. Node 0 keeps the mailbox, at the topology's port."""

    def __init__(self, topology: Topology, token: Token):
        self.topology, self._token = topology, token
        self.exchange: Exchange | None = None
        """Of this node, while the nodes have met."""
        self._mail: Mail | None = None
        self._card = Card(host="", processes=0, config="", code="", time=0.0)
        self._nonces: list[str] = []

    def meet(self, card: Card, patience: float, identity: Mapping[str, Any] | None = None) -> Welcome:
        """Show `card`, and return when all nodes have come and fit together: with node 0's `identity`, on each.

        Raises ConfigError with the same message on all, or NodeError (which a scheduler may try again) if a node does not
        come within `patience` seconds, or leaves; ConfigError on a node that has no token, or another than node 0.
        """
        self._card = replace(card, nonce=uuid.uuid4().hex)
        deadline = time.monotonic() + patience
        try:
            answer = self._answered(deadline, patience) if self.topology.rank else self._called(deadline, patience, identity)
        except SystemExit:
            self._leave()
            raise
        if answer.absent:
            raise NodeError(printable(answer.absent))
        if answer.config:
            raise ConfigError(printable(answer.config))
        self._nonces = answer.nonces
        return answer

    def close(self) -> None:
        """Leave the others: node 0's mailbox goes."""
        if self.exchange:
            self.exchange.close()
            self.exchange = None
        if self.topology.rank == 0:
            self._token.forget()

    def _called(self, deadline: float, patience: float, identity: Mapping[str, Any] | None) -> Welcome:
        """Node 0: call the roll, and tell all."""
        self._open()
        cards, skews, gone = self._cards(deadline)
        missing = [rank for rank in range(self.topology.nodes) if rank not in cards]
        answer = Welcome(
            absent=gone or (self._absent(missing, patience) if missing else ""),
            config="" if gone or missing else mismatch(cards, skews),
            warn="; ".join(f"clock of {cards[r].host} is {s:+.1f} s off" for r, s in skews.items() if abs(s) > SKEW_WARN),
            identity=dict(identity or {}),
            nonces=[cards[rank].nonce for rank in sorted(cards)],
        )
        self._tell(answer)
        return answer

    def _tell(self, answer: Welcome) -> None:
        """Node 0: the same answer to all that have come. With a bad one it stays until they have read it."""
        assert self._mail
        unread = []
        for rank in range(1, self.topology.nodes):
            if (card := self._card_of(rank)) and not self._mail.check(f"gone/{card.nonce}"):
                self._mail.set(f"answer/{card.nonce}", json.dumps(asdict(answer)))
                unread.append(f"read/{card.nonce}")
        if answer.absent or answer.config:
            self._wait_for(unread, time.monotonic() + _PARTING)

    def _wait_for(self, keys: list[str], deadline: float) -> None:
        assert self._mail
        for key in keys:
            self._mail.find(key, max(0.0, deadline - time.monotonic()))

    def _leave(self) -> None:
        """A request to stop, before all have come: nobody has to wait for this node."""
        with contextlib.suppress(MailLost, NodeError):
            if self._mail and self.topology.rank:
                self._mail.set(f"gone/{self._card.nonce}", "")
            elif self._mail:
                self._tell(Welcome(absent=self._stopped(0, self._card)))

    def _stopped(self, rank: int, card: Card) -> str:
        return f"node {rank} ({card.host}) was stopped before training began"

    def end(self, mine: Mapping[str, Any]) -> list[str]:
        """Say how this node's workers ended; returns what the others have said, as JSON, as far as they did in time."""
        ends: list[str] = []
        if self._mail is None:
            return ends
        others = self._others()
        deadline = time.monotonic() + _PARTING
        with contextlib.suppress(MailLost):  # node 0 has gone: with it the mailbox
            self._mail.set(f"end/{self._nonces[self.topology.rank]}", json.dumps(mine))
            for nonce in others:
                if (said := self._mail.find(f"end/{nonce}", max(0.0, deadline - time.monotonic()))) is not None:
                    ends.append(said)
            self._part(deadline)
        return ends

    def others_have_ended(self) -> bool:
        """Whether another node's workers have ended, or node 0 is gone."""
        if self._mail is None:
            return False
        try:
            return any(self._mail.check(f"end/{nonce}") for nonce in self._others())
        except MailLost:
            return True

    def _others(self) -> list[str]:
        return [nonce for rank, nonce in enumerate(self._nonces) if rank != self.topology.rank]

    def _part(self, deadline: float) -> None:
        """Node 0 leaves last: what it keeps must be read by all."""
        assert self._mail
        self._mail.set(f"left/{self._nonces[self.topology.rank]}", "")
        if self.topology.rank == 0:
            self._wait_for([f"left/{nonce}" for nonce in self._others() if self._mail.check(f"end/{nonce}")], deadline)

    def _open(self) -> None:
        try:
            self.exchange = main_exchange(self.topology.address, self.topology.port, self._token.make())
        except OSError as error:
            raise NodeError(
                f"port {self.topology.port} of node 0 is taken ({error.strerror}): add --main-port PORT on all nodes"
            ) from None
        self._mail = self.exchange.mail()

    def _card_of(self, rank: int) -> Card | None:
        """Node 0: what a node has shown, None if it has not come."""
        assert self._mail
        shown = self._mail.find(f"card/{rank}")
        return None if shown is None else parse(Card, shown, f"the card of node {rank}", error=NodeError)

    def _cards(self, deadline: float) -> tuple[dict[int, Card], dict[int, float], str]:
        """Node 0: the cards by rank of node, by how many seconds each clock is ahead of this one's, and who has left again."""
        assert self._mail
        cards, skews = {0: self._card}, {0: 0.0}
        while len(cards) < self.topology.nodes and time.monotonic() < deadline:
            for rank in range(1, self.topology.nodes):
                card = self._card_of(rank)
                if card and self._mail.check(f"gone/{card.nonce}"):
                    return cards, skews, self._stopped(rank, card)
                if card and rank not in cards:
                    cards[rank], skews[rank] = card, card.time - time.time()
            time.sleep(_POLL)
        return cards, skews, ""

    def _answered(self, deadline: float, patience: float) -> Welcome:
        """Any other node: node 0's answer. It may come later than this one, or be an earlier start's."""
        address, port = self.topology.address, self.topology.port
        reason: Exception | None = None
        while time.monotonic() < deadline:
            try:
                self.exchange = reach(address, port, self._token, deadline)
                return self._shown(self.exchange.mail(5.0), deadline)
            except (MailLost, TimeoutError) as error:
                reason = error
                self.close()
        why = f" ({_line(reason)})" if reason else ""
        raise NodeError(
            f"node 0 did not answer at {address}:{port} within {patience:g} s{why}: see its log, and "
            "whether this address is reached from here (--main-address, --main-port)"
        )

    def _shown(self, mail: Mail, deadline: float) -> Welcome:
        """Show the card to whoever is there."""
        self._mail = mail
        mail.set(f"card/{self.topology.rank}", json.dumps(asdict(self._card) | {"time": time.time()}))
        answer = mail.get(f"answer/{self._card.nonce}", deadline - time.monotonic())
        mail.set(f"read/{self._card.nonce}", "")
        return parse(Welcome, answer, "node 0's answer", error=NodeError)

    def _absent(self, missing: Sequence[int], patience: float) -> str:
        hosts = self.topology.hosts
        named = ", ".join(f"{rank} ({hosts[rank]})" if rank < len(hosts) else str(rank) for rank in missing)
        return (
            f"of {self.topology.nodes} nodes, {named} did not come within {patience:g} s: see the log there, and whether "
            f"{self.topology.address}:{self.topology.port} is reached from it"
        )


def _line(error: Exception) -> str:
    return str(error).splitlines()[0][:200]
