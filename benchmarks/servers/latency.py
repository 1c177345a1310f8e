"""Serve a folder over HTTP, each answer a fixed time late: GET, HEAD and Range, which is all of S3 that reading needs.

    python -m benchmarks.servers.latency FOLDER --latency 0.02      (prints its address; ends with its standard input)

Keys of S3 are paths below the folder, its buckets the folders in it; signatures are not looked at.
"""

import argparse
import os
import re
import sys
import threading
import time
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Handler(BaseHTTPRequestHandler):
    """Answer from `folder`, `latency` seconds late."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def __init__(self, folder: Path, latency: float, *args: object) -> None:
        self.folder, self._latency = folder, latency
        super().__init__(*args)  # type: ignore[arg-type]

    def do_HEAD(self) -> None:
        """Answer as GET does, without the bytes."""
        self.do_GET()

    def do_GET(self) -> None:
        """Answer with a file or a range of it."""
        time.sleep(self._latency)
        path = self.folder / unquote(urlsplit(self.path).path).lstrip("/")
        if not path.is_file() or not path.resolve().is_relative_to(self.folder):
            self.send_response(404)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        with open(path, "rb") as file:
            found = os.fstat(file.fileno())
            size = found.st_size
            first, end = byte_range(self.headers.get("Range", ""), size)
            whole = (first, end) == (0, size) and "Range" not in self.headers
            self.send_response(200 if whole else 206 if first < end else 416)
            if not whole:
                self.send_header("Content-Range", f"bytes {first}-{end - 1}/{size}")
            self.send_header("Content-Length", str(max(0, end - first)))
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("ETag", self.version(found))
            self.send_header("Last-Modified", self.date_time_string(int(found.st_mtime)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.flush()
                while first < end:
                    first += os.sendfile(self.connection.fileno(), file.fileno(), first, end - first)

    def version(self, found: os.stat_result) -> str:
        """Return the ETag of a file."""
        return f'"{found.st_mtime_ns:x}-{found.st_size:x}"'

    def log_message(self, *message: object) -> None:
        """Print nothing: there are many requests."""


def byte_range(header: str, size: int) -> tuple[int, int]:
    """Return the bytes [first, end) that a Range header asks for."""
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", header)
    if not match or not any(match.groups()):
        return 0, size
    first, last = match.groups()
    if not first:
        return max(0, size - int(last)), size
    return int(first), min(size, int(last) + 1) if last else size


class Server(ThreadingHTTPServer):
    """Answer in threads that end with the process."""

    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: object, client_address: object) -> None:
        """Ignore clients that leave in the middle of an answer."""


def serve(folder: Path, latency: float) -> Server:
    """Start a server on a free port of 127.0.0.1; it answers in threads until its `shutdown`."""
    server = Server(("127.0.0.1", 0), partial(Handler, folder.resolve(), latency))
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    return server


def main() -> None:
    """Serve until standard input ends."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.servers.latency", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="what is served")
    parser.add_argument("--latency", type=float, default=0.02, help="seconds before the first byte (default 0.02)")
    args = parser.parse_args()
    server = serve(args.folder, args.latency)
    print(f"http://127.0.0.1:{server.server_port}", flush=True)
    sys.stdin.read()
    server.shutdown()


if __name__ == "__main__":
    main()
