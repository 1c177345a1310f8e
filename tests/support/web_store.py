"""A web server as people meet them: with and without ranges, signed addresses, redirects, stores that say no."""

import http.server
import re
import threading
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote, urlsplit

SIGNATURE = "sig=a-secret"
LOGIN = "reader:a-S33D-word"


class StoreServer(http.server.ThreadingHTTPServer):
    """Serves `folder` at 127.0.0.1 and counts what it was asked for and what it sent.

    Modes: ranges, plain (no ranges), whole200 (200 for a range that is the whole file), signed (403 without `SIGNATURE`),
    login (401 without `LOGIN`),
    redirect (302 to a signed address), no-length (no Content-Length), circle (redirects to itself).
    `answers` are (status, body) that come first, one for each request; with `forever` the last one stays.
    """

    daemon_threads = True

    def __init__(self, folder: Path, mode: str, answers: list[tuple[int, str]], *, forever: bool) -> None:
        self.folder, self.mode, self.answers, self.forever = folder, mode, answers, forever
        self.asked: list[str] = []
        """METHOD PATH of each request."""
        self.sent = 0
        """Bytes of files."""
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def address(self) -> str:
        """Without a slash at its end."""
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, *_: object) -> None:
        """A client that hangs up in the middle of an answer is what some tests are about."""


@contextmanager
def serve(
    folder: Path, mode: str = "ranges", *, answers: list[tuple[int, str]] | None = None, forever: bool = False
) -> Iterator[StoreServer]:
    """Run a `StoreServer`."""
    with StoreServer(folder, mode, answers or [], forever=forever) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: StoreServer

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.asked.append(f"{self.command} {self.path}")
        if self.server.answers:
            status, body = self.server.answers[0] if self.server.forever else self.server.answers.pop(0)
            self._answer(status, {}, body.encode())
            return
        mode, url = self.server.mode, urlsplit(self.path)
        file = self.server.folder / unquote(url.path.removeprefix("/cdn")).lstrip("/")
        if mode == "circle":
            self._answer(302, {"Location": self.path}, b"")
        elif mode == "redirect" and not url.path.startswith("/cdn"):
            self._answer(302, {"Location": f"/cdn{url.path}?{SIGNATURE}"}, b"")
        elif mode in ("signed", "redirect") and (url.query != SIGNATURE or self.command != "GET"):
            self._answer(403, {}, b"<html>no signature</html>")
        elif mode == "login" and self.headers.get("Authorization") != f"Basic {b64encode(LOGIN.encode()).decode()}":
            self._answer(401, {}, b"<html>no password</html>")
        elif not file.is_file():
            self._answer(404, {}, b"")
        else:
            self._file(file.read_bytes())

    do_HEAD = do_PUT = do_POST = do_DELETE = do_PROPFIND = do_GET  # type: ignore[assignment]

    def _file(self, data: bytes) -> None:
        headers = {"ETag": f'"{hash(data)}"'}
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range") or "")
        if wanted is None or self.server.mode == "plain":
            self._answer(200, headers, data)
            return
        first, last = int(wanted[1]), min(int(wanted[2]), len(data) - 1)
        if first >= len(data):
            self._answer(416, {"Content-Range": f"bytes */{len(data)}"}, b"")
            return
        whole = self.server.mode == "whole200" and last - first + 1 == len(data)
        headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
        self._answer(200 if whole else 206, {} if whole else headers, data[first : last + 1])

    def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if self.server.mode == "no-length":
            self.send_header("Connection", "close")
        else:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            for start in range(0, len(body), 1 << 14):
                self.wfile.write(body[start : start + (1 << 14)])
                self.server.sent += min(1 << 14, len(body) - start)
