"""The store of the process group, which torch opens to everybody, behind the job's token: it listens on the loopback only.

The main node's launcher keeps it. On every other node a relay listens on the loopback, too, and passes what comes there on to
the main node's mailbox, which connects it to the store. So the workers of each node find it at 127.0.0.1.
"""

import asyncio
import json
import os
import socket
import time
from dataclasses import asdict, dataclass

from torch.distributed import TCPStore  # type: ignore[attr-defined]

from pipeline import variables
from pipeline.messaging import job_token, signing
from pipeline.messaging.job_token import Token
from pipeline.messaging.loopback import is_loopback
from pipeline.messaging.mailbox import Channel, Mailbox, MailboxRequest, Thread, keep_alive, pump
from pipeline.messaging.mailbox_client import Mail, MailLost, MailRefused
from pipeline.messaging.signing import Seal, Unsealed

_SECOND_THOUGHTS = 20.0
"""Seconds after which a refused token is wrong: until then it may be an earlier start that refuses it, or a stale file."""
_APPEARS = 60.0
"""Seconds after which a file on a shared disk is seen by all nodes."""


@dataclass
class Exchange:
    """What the processes of this node talk to others through, open until `close`."""

    address: str
    port: int
    token: str
    store_port: int
    """Of this machine's loopback, where the workers find the process group's store."""
    parts: "tuple[TCPStore, Mailbox] | tuple[Relay]"

    def environment(self) -> dict[str, str]:
        """Return the variables of the workers."""
        return {variables.MAIL: f"{self.address}:{self.port}", variables.TOKEN: self.token}

    def mail(self, seconds: float = 30.0) -> Mail:
        """Connect to the mailbox. Raises MailLost, MailRefused."""
        return Mail(self.address, self.port, self.token, seconds)

    def close(self) -> None:
        """Close what this process keeps."""
        if not isinstance(self.parts[-1], TCPStore):
            self.parts[-1].close()


def main_exchange(address: str, port: int, token: str) -> Exchange:
    """Open the main node's mailbox and store. At a loopback address all nodes are this machine, and nobody else gets there.

    Raises OSError if the port is taken, or the address another machine's.
    """
    here = is_loopback(address)
    store, store_port = loopback_store()
    mailbox = Mailbox(address if here else "", port, token, store_port)
    return Exchange(address if here else "127.0.0.1", mailbox.port, token, store_port, (store, mailbox))


def reach(address: str, port: int, token: Token, deadline: float) -> Exchange:
    """Open any other node's way to the mailbox and store of the main node, as soon as that is there.

    Raises MailLost if it is not by `deadline`, ConfigError on a node that has no token, or another.
    """
    refused_since: float | None = None
    while True:
        known = token.find()
        try:
            Mail(address, port, known or "", 5.0).close()
            relay = Relay(address, port, known or "")
            return Exchange(address, port, known or "", relay.port, (relay,))
        except MailRefused:
            now = time.monotonic()
            refused_since = refused_since or now
            if now > refused_since + (_SECOND_THOUGHTS if known else _APPEARS):
                raise job_token.refused(f"{address}:{port}") if known else job_token.missing() from None
        except MailLost:
            refused_since = None
            if time.monotonic() > deadline:
                raise
        time.sleep(0.2 if refused_since is None else 1.0)


def mail_of_environment() -> Mail | None:
    """Connect a worker to the mailbox of its job; None if none of our launchers has started it."""
    if (place := os.environ.get(variables.MAIL)) is None:
        return None
    address, _, port = place.rpartition(":")
    return Mail(address, int(port), os.environ[variables.TOKEN])


def loopback_store() -> tuple[TCPStore, int]:
    """Return a store that listens at 127.0.0.1, and its port. torch by itself would listen at every address."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    port = listener.getsockname()[1]
    store = TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False, master_listen_fd=listener.detach())
    return store, port


class Relay:
    """Passes connections to `port` of this machine's loopback on to the store behind the mailbox at `address`."""

    def __init__(self, address: str, port: int, token: str) -> None:
        listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self.port: int = listener.getsockname()[1]
        self._main, self._token = (address, port), token
        self._thread = Thread(listener, self._pass_on, "relay")

    def close(self) -> None:
        """Stop listening, and close all connections."""
        self._thread.stop()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection(*self._main)
        keep_alive(back.get_extra_info("socket"))
        try:
            challenge = await there.readexactly(signing.CHALLENGE)
            reply = signing.reply(self._token, challenge)
            back.write(reply)
            if await there.readexactly(signing.PROOF) != signing.proof(self._token, challenge, reply):
                raise Unsealed("the mailbox has another token")
            going, coming = (Seal(self._token, challenge, reply, way) for way in (b"to main", b"from main"))
            channel = Channel(there, back, coming, going)
            await channel.send(json.dumps(asdict(MailboxRequest("relay"))).encode())
            await pump(channel, reader, writer)
        finally:
            back.close()
