"""`biggan explore` among strangers: pages of other sites, clients that leave, say half of something, or nothing."""

import json
import shlex
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from jobs.explore import subject as subject_of
from pipeline.ui import explore_server
from pipeline.ui.explore_app import Subject, shown
from pipeline.ui.explore_server import hosts_of
from tests.support.background import wait_for as until
from tests.support.explore_page import Page, arguments, served
from tests.support.saved_run import short_standing_statistics


@pytest.fixture(scope="module")
def subject(registered_run: Path) -> Subject:
    with pytest.MonkeyPatch.context() as patch:
        short_standing_statistics(patch)
        return subject_of(arguments(str(registered_run)))


@pytest.fixture(scope="module")
def page(subject: Subject) -> Iterator[Page]:
    with served(subject, "hub.example.org") as page:
        yield page


def status_of(page: Page, path: str, headers: dict[str, str]) -> tuple[int, Any]:
    """Status and headers of GET `path`; a Host without a port gets the server's."""
    host = headers.get("Host", "127.0.0.1:PORT").replace("PORT", page.at.rpartition(":")[2])
    request = urllib.request.Request(page.at + path, headers=headers | {"Host": host})
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=60) as answer:
            return answer.status, answer.headers
    except urllib.error.HTTPError as error:
        body = error.read()
        assert json.loads(body).keys() == {"error"} and b"\\n" not in body
        return error.code, error.headers


LINK = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}


@pytest.mark.parametrize(
    ("headers", "page_status", "api_status"),
    [
        *(({"Host": host}, 200, 200) for host in ("127.0.0.1", "localhost:PORT", "[::1]:9", "LocalHost", "hub.example.org")),
        *(({"Host": host}, 403, 403) for host in ("evil.example", "evil.example:PORT", "127.0.0.1.evil.example", "10.0.0.1")),
        *(({"Host": host}, 403, 403) for host in ("", "127.0.0.1@evil.example", "localhost:PORT/x", "\xe9:1", "[::1")),
        *(({"Sec-Fetch-Site": site}, 200, 200) for site in ("none", "same-origin")),
        *(({"Sec-Fetch-Site": site, "Sec-Fetch-Mode": "cors"}, 403, 403) for site in ("cross-site", "same-site", "?")),
        (LINK, 200, 403),  # a link to the page opens it; nothing is drawn for it
        (LINK | {"Sec-Fetch-Dest": "iframe"}, 403, 403),
        ({"Origin": "http://127.0.0.1:PORT"}, 200, 200),
        *(({"Origin": origin}, 403, 403) for origin in ("http://evil.example", "null", "http://127.0.0.1:1", "http://localhost:PORT")),
        ({"Origin": "https://hub.example.org"}, 200, 200),
    ],
)  # fmt: skip
def test_only_the_users_own_page_is_answered(page: Page, headers: dict[str, str], page_status: int, api_status: int) -> None:
    port = page.at.rpartition(":")[2]
    headers = {name: value.replace("PORT", port) for name, value in headers.items()}
    for path, wanted in (("/", page_status), ("/api/model", api_status), ("/api/samples?count=1", api_status)):
        status, said = status_of(page, path, headers)
        assert status == wanted, path
        assert said["X-Content-Type-Options"] == "nosniff" and said["Referrer-Policy"] == "no-referrer"
        assert said["X-Frame-Options"] == "DENY" and "default-src 'none'" in said["Content-Security-Policy"]
        assert "Access-Control-Allow-Origin" not in said


def test_the_names_of_a_server_for_everybody() -> None:
    everywhere = hosts_of("0.0.0.0", "0.0.0.0")
    assert all(map(everywhere.has, ("10.1.2.3:7860", "[fe80::1]:7860", socket.gethostname(), "localhost")))
    assert not everywhere.has("evil.example") and not everywhere.has("10.1.2.3.evil.example")
    assert hosts_of("box.example", "10.1.2.3").has("BOX.example:1") and hosts_of("box.example", "10.1.2.3").has("10.1.2.3")
    assert not hosts_of("box.example", "10.1.2.3").has("10.1.2.4")


class Drawings:
    """Notes the seeds that are drawn, and holds the first drawing until `go` is set."""

    def __init__(self, subject: Subject, patch: pytest.MonkeyPatch) -> None:
        self.seeds: list[int] = []
        self.begun, self.go = threading.Event(), threading.Event()
        self._draw = subject.painter.samples
        patch.setattr(subject.painter, "samples", self.samples)

    def samples(self, labels: list[int], seed: int, truncation: float | None) -> Tensor:
        self.seeds.append(seed)
        self.begun.set()
        assert self.go.wait(60)
        return self._draw(labels, seed, truncation)


def connected(page: Page, sent: str) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", int(page.at.rpartition(":")[2])), timeout=60)
    connection.sendall(sent.encode())
    return connection


def samples(seed: int) -> str:
    return f"GET /api/samples?count=1&seed={seed} HTTP/1.1\r\nHost: localhost\r\n\r\n"


def test_what_nobody_waits_for_is_not_drawn(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    drawings = Drawings(subject, monkeypatch)
    with served(subject) as page:
        strangers = [connected(page, samples(1))]
        assert drawings.begun.wait(60)
        strangers += [connected(page, samples(seed)) for seed in range(2, 7)]
        for _ in range(2):  # answered by the server after it has seen them
            assert page.get("model")[0] == 200
        for stranger in strangers:
            stranger.close()
        with connected(page, samples(7)) as user:
            for _ in range(2):
                assert page.get("model")[0] == 200
            drawings.go.set()
            assert user.recv(12) == b"HTTP/1.1 200"
    assert drawings.seeds == [1, 7]


def test_more_than_can_be_drawn_is_refused(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(explore_server, "_MOST_WAITING", 2)
    drawings = Drawings(subject, monkeypatch)
    with served(subject) as page:
        waiting = [connected(page, samples(seed)) for seed in (1, 2)]
        for _ in range(2):
            assert page.get("model")[0] == 200
        status, answer = page.get("samples", count=1)
        assert status == 503 and answer == {"error": "2 requests wait already: try again in a moment"}
        drawings.go.set()
        assert [one.recv(12) for one in waiting] == [b"HTTP/1.1 200"] * 2
        assert page.get("samples", count=1)[0] == 200


def ended(connection: socket.socket) -> bool:
    """Whether the server has closed it; waits for that."""
    try:
        while connection.recv(1 << 16):
            pass
    except ConnectionResetError:
        pass
    return True


HALVES = (
    "",
    "GET / HT",
    "GET /api/model HTTP/1.1\r\nHost: localhost\r\nX: ",
    "GET /api/model HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\nhalf",
    "GET /api/model HTTP/1.1\r\nHost: localhost\r\n\r\nGET /api/mo",
)


@pytest.mark.long
def test_half_a_request_ends_and_does_not_wait_for_the_rest(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(explore_server, "_LOOK_SECONDS", 0.1)
    with served(subject) as page:
        assert all(ended(connected(page, half)) for half in HALVES)
        assert page.get("model")[0] == 200


def test_the_oldest_silent_connection_makes_room(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(explore_server, "_MOST_CONNECTIONS", 4)
    with served(subject) as page:
        silent = [connected(page, "GET / HT") for _ in range(20)]
        assert page.get("samples", count=1)[0] == 200
        assert all(map(ended, silent[:16]))


@pytest.mark.long
def test_an_answer_that_nobody_reads_ends(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(explore_server, "_LOOK_SECONDS", 0.1)
    subject = replace(subject, name="x" * 20_000_000)
    with served(subject) as page, connected(page, "GET /api/model HTTP/1.1\r\nHost: localhost\r\n\r\n") as lazy:
        until(lambda: page.server.server_state.total_requests == 1 and not page.server.server_state.connections)
        read = 0
        try:
            while part := lazy.recv(1 << 20):
                read += len(part)
        except ConnectionResetError:
            pass
        assert read < 20_000_000


NAMES = (
    "caf\udce9",
    "a\0b",
    "<script>alert(1)</script>",
    "\u202eevil",
    "x" * 10_000,
    "x" * 10_001,
    "two\nlines",
    "",
    " ",
    "a,b",
    "-f",
)


@pytest.mark.long
def test_class_names_of_any_kind(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    for some in (NAMES[:4], NAMES[4:8], NAMES[7:]):
        monkeypatch.setattr(subject.painter, "classes", some)
        with served(subject) as page:
            status, about = page.get("model")
            assert status == 200 and len(about["classes"]) == len(some)
            for number, name in enumerate(about["classes"]):
                status, found = page.get("samples", **{"class": name, "count": 1})
                assert status == 200 and found["images"][0]["class"] == name, name
                plain = name == some[number] and "," not in name and not name.startswith("-")
                command = shlex.split(found["command"])
                assert command[command.index("--classes") + 1] == (name if plain else str(number))
            assert page.get("samples", **{"class": "none such"})[0] == 400


@given(st.lists(st.text(st.characters() | st.characters(categories=["Cs", "Cf", "Cc"])), unique=True))
def test_every_shown_name_is_one_line_and_the_only_one(names: list[str]) -> None:
    found = shown(names)
    assert len(set(found)) == len(names)
    assert all(name.isprintable() and name == name.strip() and name for name in found)
