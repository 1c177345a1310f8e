"""A proxy before an MLflow server that passes requests on, delays or refuses them, or loses their answers."""

import http.client
import itertools
import threading
import time
from functools import partial
from http.server import BaseHTTPRequestHandler
from typing import Literal

from benchmarks.servers.latency import Server

Mode = Literal["pass", "403", "slow", "lossy"]
_OWN = {"host", "connection", "content-length", "transfer-encoding", "keep-alive", "date", "server"}


class Proxy:
    """Listens at `uri`, passes on to `port` of this machine; `mode` may change at any time.

    403: every request. slow: each answer is `delay` seconds late. lossy: of four requests one is dropped before the server
    has it, one after: its work is done, and the client does not know.
    """

    def __init__(self, port: int, mode: Mode = "pass", delay: float = 1.5):
        self.port, self.mode, self.delay = port, mode, delay
        self.requests = itertools.count()
        self._server = Server(("127.0.0.1", 0), partial(_Handler, self))
        self.uri = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, proxy: Proxy, *args: object) -> None:
        self._proxy = proxy
        super().__init__(*args)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        """Answer every method."""
        mode, turn = self._proxy.mode, next(self._proxy.requests) % 4
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if mode == "403":
            self._answer(403, {"Content-Type": "text/html"}, b"<html>no</html>")
            return
        if mode == "lossy" and turn == 1:
            self.close_connection = True
            return
        if mode == "slow":
            time.sleep(self._proxy.delay)
        server = http.client.HTTPConnection("127.0.0.1", self._proxy.port, timeout=60)
        try:
            headers = {name: value for name, value in self.headers.items() if name.lower() not in _OWN}
            server.request(self.command, self.path, body, headers | {"Host": f"127.0.0.1:{self._proxy.port}"})
            answer = server.getresponse()
            content = answer.read()
        except OSError:
            self._answer(502, {}, b"")
            return
        finally:
            server.close()
        if mode == "lossy" and turn == 3:
            self.close_connection = True
            return
        self._answer(answer.status, {n: v for n, v in answer.getheaders() if n.lower() not in _OWN}, content)

    do_POST = do_PUT = do_PATCH = do_DELETE = do_GET

    def _answer(self, status: int, headers: dict[str, str], content: bytes) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *message: object) -> None:
        """Print nothing: there are many requests."""
