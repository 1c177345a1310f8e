"""Who may use the page of `biggan explore`, and for how long.

A server on this machine can be reached by every page in the user's browser, and by every program here. So it answers only
to its own names (a foreign page can point a name of its own at 127.0.0.1) and not to requests that another page has sent.
One request draws at a time; a request whose client has left is dropped before it is drawn.
"""

import asyncio
import ipaddress
import re
import socket
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import urlsplit

import uvicorn
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from pipeline.errors import StorageError

T = TypeVar("T")

_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_MOST_WAITING = 32  # requests that wait to be drawn
_MOST_CONNECTIONS = 128
_LOOK_SECONDS = 10.0  # in which a connection must deliver a request, or take some of an answer
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}


@dataclass(frozen=True)
class Hosts:
    """The names that a request may call this server by, with any port."""

    names: frozenset[str]
    proxies: frozenset[str] = frozenset()
    """Names that a proxy serves the page by; it may tell this server another one."""
    any_address: bool = False
    """Whether every IP address is one: a foreign page can point a name at this machine, but not an address."""

    def has(self, netloc: str) -> bool:
        """Return whether HOST or HOST:PORT is one of the names."""
        host = _host(netloc)
        return host in self.names | self.proxies or (self.any_address and _is_address(host))


def hosts_of(host: str, address: str, proxies: Iterable[str] = ()) -> Hosts:
    """Return the names of a server that was started with `--host HOST`, listens at `address`, and is behind `proxies`."""
    names = {*_LOOPBACK, host.lower(), address}
    if everywhere := ipaddress.ip_address(address).is_unspecified:
        names |= {socket.gethostname().lower(), socket.getfqdn().lower()}
    return Hosts(frozenset(names), frozenset(name.lower() for name in proxies), everywhere)


class Guard:
    """Passes on what the user's own page asks, refuses the rest with status 403, and adds headers for browsers.

    Args:
        app: what is guarded.
        hosts: names of this server.
        policy: the Content-Security-Policy of every answer.
    """

    def __init__(self, app: ASGIApp, hosts: Hosts, policy: str) -> None:
        self._app, self._hosts = app, hosts
        self._headers = _HEADERS | {"Content-Security-Policy": policy}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(self._headers)
            await send(message)

        why = self._refusal(Headers(scope=scope), scope["path"])
        app = JSONResponse({"error": why}, 403) if why else self._app
        await app(scope, receive, send_with_headers)

    def _refusal(self, headers: Headers, path: str) -> str:
        """Return why a request is refused; nothing if it is not."""
        host, origin, site = (headers.get(name, "") for name in ("host", "origin", "sec-fetch-site"))
        if not self._hosts.has(host):
            return (
                f"this server does not answer to the host {_short(host)}: open http://127.0.0.1:PORT/ with its port, or add "
                "--allow-host NAME to `biggan explore` for a proxy of that name"
            )
        place = urlsplit(origin).netloc if origin.startswith(("http://", "https://")) else ""
        if origin and place.lower() != host.lower() and _host(place) not in self._hosts.proxies:
            return f"a page of {_short(origin)} may not use this server"
        # Another port of this machine is another program, perhaps another user's. A link to the page itself is no use of it.
        link = path == "/" and (headers.get("sec-fetch-mode"), headers.get("sec-fetch-dest")) == ("navigate", "document")
        if site not in ("", "none", "same-origin") and not link:
            return "a page of another site may not use this server"
        return ""


class Turns:
    """Lets one request draw at a time, in the order in which they came."""

    def __init__(self) -> None:
        self._turn = asyncio.Lock()
        self._waiting = 0

    async def take(self, request: Request, work: Callable[[], T]) -> T | None:
        """Return what `work` returns; None, without any work, if the client of `request` has left before its turn.

        Raises StorageError if too many wait.
        """
        if self._waiting >= _MOST_WAITING:
            raise StorageError(f"{self._waiting} requests wait already: try again in a moment")
        self._waiting += 1
        left, turn = asyncio.create_task(_left(request)), asyncio.create_task(self._turn.acquire())
        try:
            await asyncio.wait((left, turn), return_when=asyncio.FIRST_COMPLETED)
            await asyncio.sleep(0)  # with the turn comes, perhaps, the news that nobody waits for it
            return None if left.done() else await run_in_threadpool(work)
        finally:
            self._waiting -= 1
            left.cancel()
            if not turn.cancel() and not turn.cancelled():
                self._turn.release()


async def _left(request: Request) -> None:
    """Return when the client has closed its connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def make_server(app: ASGIApp) -> uvicorn.Server:
    """Return a server of `app` that nobody can keep busy by saying nothing, or half of something."""
    return uvicorn.Server(
        uvicorn.Config(
            app,
            http=_Connection,
            ws="none",
            lifespan="off",
            log_level="error",  # what a stranger has sent amiss is no news
            access_log=False,
            proxy_headers=False,
            server_header=False,
            limit_concurrency=2 * _MOST_CONNECTIONS,
            timeout_keep_alive=5,
            timeout_graceful_shutdown=2,
            h11_max_incomplete_event_size=16 << 10,
        )
    )


class _Connection(H11Protocol):
    """Ends when it neither delivers a whole request nor takes some of an answer; the oldest such one makes room for others."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._began, self._seen = self.loop.time(), self._state()
        self._timer = self.loop.call_later(_LOOK_SECONDS, self._look)
        if len(self.connections) > _MOST_CONNECTIONS:
            idle = [one for one in self.connections if isinstance(one, _Connection) and one is not self and not one._drawing()]
            if idle:
                min(idle, key=lambda one: one._began)._end()

    def connection_lost(self, exc: Exception | None) -> None:
        self._timer.cancel()
        super().connection_lost(exc)

    def _look(self) -> None:
        if not self._drawing() and self._state() == self._seen:
            self._end()
            return
        self._seen = self._state()
        self._timer = self.loop.call_later(_LOOK_SECONDS, self._look)

    def _end(self) -> None:
        self.connections.discard(self)  # uvicorn does so a moment later
        self.transport.abort()

    def _drawing(self) -> bool:
        return self.cycle is not None and not self.cycle.response_started

    def _state(self) -> tuple[Any, int]:
        return self.cycle, self.transport.get_write_buffer_size()


def _host(netloc: str) -> str:
    """Return the host of HOST or HOST:PORT, in lower case; nothing for what is neither."""
    found = re.fullmatch(r"([\w.-]+|\[[0-9A-Fa-f:.]+\])(:\d{1,5})?", netloc, re.ASCII)
    return found[1].strip("[]").lower() if found else ""


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _short(text: str) -> str:
    return repr(text[:80])
