"""The mailbox of a job: the main process keeps letters (texts by key) for the others, who all show that they know its token.

One port takes all: letters of the nodes and savers (`pipeline.messaging.mailbox_client`), and connections to the main node's
process-group store, which listens on the loopback only (`pipeline.messaging.store_relay`). Who does not know the token gets
nothing but a challenge: such connections are few at a time, and closed soon.
"""

import asyncio
import contextlib
import json
import socket
import sys
import threading
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from typing import Annotated, Literal

import pydantic

from pipeline.errors import DataError
from pipeline.messaging import signing
from pipeline.messaging.signing import HEADER, Seal, Unsealed
from pipeline.untrusted import parse
from pipeline.wording import plural

WAIT = 10.0
"""Seconds that a request may wait for its letter. Who waits longer asks again, and so notices a main node that is gone."""

_STRANGERS = 64
"""Connections that have not shown the token yet; of more the oldest is closed, as a process of the job needs no time for it."""
_SECONDS = 20.0
"""After which such a connection is closed."""
_LETTERS, _BYTES = 100_000, 256 << 20
"""Letters and bytes of them that are kept at most."""


@dataclass(frozen=True)
class MailboxRequest:
    """What a process of the job asks for."""

    do: Literal["set", "get", "add", "delete", "relay"]
    key: Annotated[str, pydantic.Field(max_length=200)] = ""
    value: Annotated[str, pydantic.Field(max_length=signing.MOST)] = ""
    seconds: Annotated[float, pydantic.Field(ge=0, le=WAIT)] = 0.0


@dataclass(frozen=True)
class MailboxAnswer:
    """Of `get` the value, or None if there was none in time; of `add` how often that key was added."""

    value: str | None = None
    count: int = 0


class Channel:
    """A connection whose both ends know the token."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, coming: Seal, going: Seal):
        self._reader, self._writer, self._coming, self._going = reader, writer, coming, going

    async def receive(self) -> bytes:
        """The next message. Raises Unsealed, or IncompleteReadError at the end."""
        header = await self._reader.readexactly(HEADER)
        return self._coming.check(header, await self._reader.readexactly(self._coming.length(header)))

    async def send(self, message: bytes) -> None:
        """Send a message."""
        self._writer.write(self._going.wrap(message))
        await self._writer.drain()


class Mailbox:
    """Listens at `host`, "" for every address of this machine, and `port`, 0 for a free one, in a thread of its own.

    `relay_to` is the port of this machine's loopback that those who know the token are connected to on request. Raises OSError
    if it cannot listen there.
    """

    def __init__(self, host: str, port: int, token: str, relay_to: int | None = None):
        listener = _listen(host, port)
        self.port: int = listener.getsockname()[1]
        self._token, self._relay_to = token, relay_to
        self._letters: dict[str, str] = {}
        self._counts: dict[str, int] = {}
        self._bytes = 0
        self._strangers: dict[asyncio.StreamWriter, None] = {}
        self._refused = 0
        self._thread = Thread(listener, self._greet, "mailbox")

    def close(self) -> None:
        """Stop listening, and close all connections."""
        self._thread.stop()
        if self._refused > 1:
            told = plural(self._refused, "connection")
            print(f"biggan: warning: {told} to port {self.port} did not know this job's token", file=sys.stderr)

    async def _greet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        channel = await self._authenticated(reader, writer)
        while channel:
            request = _request(await channel.receive())
            if request.do == "relay":
                return await self._relay(channel)
            await channel.send(json.dumps(asdict(await self._answer(request))).encode())
        return None

    async def _relay(self, channel: Channel) -> None:
        if self._relay_to is None:
            raise Unsealed("there is nothing to be connected to")
        await pump(channel, *await asyncio.open_connection("127.0.0.1", self._relay_to))

    async def _authenticated(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Channel | None:
        challenge = signing.challenge()
        writer.write(challenge)
        self._strangers[writer] = None
        if len(self._strangers) > _STRANGERS:
            oldest = next(iter(self._strangers))
            del self._strangers[oldest]
            oldest.transport.abort()
        try:
            reply = await asyncio.wait_for(reader.readexactly(signing.REPLY), _SECONDS)
        except (asyncio.IncompleteReadError, OSError, TimeoutError):
            reply = bytes(signing.REPLY)
        finally:
            self._strangers.pop(writer, None)
        if not signing.knows(self._token, challenge, reply):
            self._refuse(writer)
            return None
        writer.write(signing.proof(self._token, challenge, reply))
        coming, going = (Seal(self._token, challenge, reply, way) for way in (b"to main", b"from main"))
        return Channel(reader, writer, coming, going)

    def _refuse(self, writer: asyncio.StreamWriter) -> None:
        writer.write(signing.REFUSAL)
        self._refused += 1
        if self._refused == 1:
            print(
                f"biggan: warning: a connection to port {self.port} did not know this job's token and was closed; more are "
                "only counted",
                file=sys.stderr,
                flush=True,
            )

    async def _answer(self, request: MailboxRequest) -> MailboxAnswer:
        key = request.key
        if request.do == "get":
            if key not in self._letters and request.seconds:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._thread.changed(lambda: key in self._letters), request.seconds)
            return MailboxAnswer(self._letters.get(key))
        if request.do == "add":
            self._counts[key] = self._counts.get(key, 0) + 1
            self._make_sure(len(self._counts) <= _LETTERS)
            return MailboxAnswer(count=self._counts[key])
        self._bytes -= len(self._letters.pop(key, ""))
        if request.do == "set":
            self._letters[key] = request.value
            self._bytes += len(request.value)
            self._make_sure(len(self._letters) <= _LETTERS and self._bytes <= _BYTES)
            await self._thread.tell()
        return MailboxAnswer()

    def _make_sure(self, fits: bool) -> None:
        if not fits:
            raise Unsealed("more letters than any job needs")


class Thread:
    """An event loop that answers at one socket: `handle` for each connection, which is closed when that ends or fails."""

    def __init__(
        self,
        listener: socket.socket,
        handle: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
        name: str,
    ):
        self._handle = handle
        self._loop = asyncio.new_event_loop()
        self._stop, self._condition = asyncio.Event(), asyncio.Condition()
        self._thread = threading.Thread(target=self._run, args=(listener,), name=name, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End it; returns when it has."""
        with contextlib.suppress(RuntimeError):  # it has ended already
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    async def changed(self, true: Callable[[], bool]) -> None:
        """Wait until `true`, which is asked again after each `tell`."""
        async with self._condition:
            await self._condition.wait_for(true)

    async def tell(self) -> None:
        """Wake those who wait."""
        async with self._condition:
            self._condition.notify_all()

    def _run(self, listener: socket.socket) -> None:
        self._loop.run_until_complete(self._serve(listener))
        self._loop.close()

    async def _serve(self, listener: socket.socket) -> None:
        server = await asyncio.start_server(self._connected, sock=listener, backlog=1024)
        await self._stop.wait()
        server.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        keep_alive(writer.get_extra_info("socket"))
        try:
            await self._handle(reader, writer)
        except (Unsealed, OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # whoever it was may come again, unless this is the end
        finally:
            writer.close()


def _request(data: bytes) -> MailboxRequest:
    try:
        return parse(MailboxRequest, data, "a request")
    except DataError as error:  # of one who knows the token: another version of this program
        raise Unsealed(str(error)) from None


async def pump(channel: Channel, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Pass bytes on between a channel and a plain connection until either ends."""

    async def inwards() -> None:
        while True:
            writer.write(await channel.receive())
            await writer.drain()

    async def outwards() -> None:
        while data := await reader.read(1 << 16):
            await channel.send(data)

    tasks = [asyncio.ensure_future(inwards()), asyncio.ensure_future(outwards())]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        writer.close()


def _listen(host: str, port: int) -> socket.socket:
    if host or not socket.has_dualstack_ipv6():
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=1024)
    return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=1024)


def keep_alive(connection: socket.socket) -> None:
    """Let it be noticed within a minute that the other machine has gone without a word."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 20), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, name):  # not on every system
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
