"""A folder over HTTP that fails in every way a store can, by a plan that a seed decides.

Each answer may be a 500 or 503, a connection that is closed before it or in its middle, one that stalls or crawls, has a bit
flipped, or claims to be of another version. The same bytes fail at most twice, and are wrong at most once: trouble passes.
"""

import collections
import random
import threading
import time
from functools import partial
from http.server import ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

from benchmarks.servers.latency import Handler, Server, byte_range

FAULTS = ("500", "503", "reset", "cut", "stall", "slow", "flip", "stale")


class Plan:
    """Decide which request fails, and how."""

    def __init__(self, seed: int, share: float = 0.25, stall: float = 5.0) -> None:
        self._random, self._share, self.stall = random.Random(seed), share, stall
        self._failed: collections.Counter[tuple[str, str]] = collections.Counter()
        self._lock = threading.Lock()
        self.requests = 0
        self.faults: collections.Counter[str] = collections.Counter()

    def next(self, method: str, path: str, wanted: str) -> str:
        """Return a fault, or None."""
        with self._lock:
            self.requests += 1
            fault = self._random.choice(FAULTS) if self._random.random() < self._share else ""
            key = (path, wanted)
            if method == "HEAD" and fault not in ("500", "503", "reset"):
                fault = ""
            if self._failed[key] >= 2 or (self._failed[key] and fault == "flip"):
                fault = ""
            if fault:
                self._failed[key] += 2 if fault == "flip" else 1
                self.faults[fault] += 1
            return fault


class _Faulty(Handler):
    def __init__(self, plan: Plan, *args: object) -> None:
        self._plan = plan
        super().__init__(*args)

    def do_GET(self) -> None:
        """Answer, or fail as the plan says."""
        wanted = self.headers.get("Range", "")
        fault = self._plan.next(self.command, self.path, wanted)
        if not fault:
            super().do_GET()
        elif fault == "reset":
            self.close_connection = True
        elif fault in ("500", "503"):
            self.send_response(int(fault))
            self.send_header("Content-Length", "0")
            self.end_headers()
        else:
            self._wrong(fault, wanted)

    def _wrong(self, fault: str, wanted: str) -> None:
        path = self.folder / unquote(urlsplit(self.path).path).lstrip("/")
        if not path.is_file():
            super().do_GET()
            return
        content = path.read_bytes()
        first, end = byte_range(wanted, len(content))
        body = bytearray(content[first:end])
        if fault == "flip" and body:
            body[len(body) // 3] ^= 1
        self.send_response(206 if wanted else 200)
        if wanted:
            self.send_header("Content-Range", f"bytes {first}-{end - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", '"another"' if fault == "stale" else self.version(path.stat()))
        self.end_headers()
        half = len(body) // 2
        if fault in ("cut", "stall"):
            self.wfile.write(body[:half])
            self.wfile.flush()
            if fault == "stall":
                time.sleep(self._plan.stall)
            self.close_connection = True
        elif fault == "slow":
            for place in range(0, len(body), max(1, len(body) // 20)):
                self.wfile.write(body[place : place + max(1, len(body) // 20)])
                self.wfile.flush()
                time.sleep(0.05)
        else:
            self.wfile.write(body)


def serve_with_faults(folder: Path, plan: Plan) -> ThreadingHTTPServer:
    """Start a server on a free port of 127.0.0.1; it runs until its `shutdown`."""
    server = Server(("127.0.0.1", 0), partial(_Faulty, plan, folder.resolve(), 0.0))
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    return server
