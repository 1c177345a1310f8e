"""A web server on this machine that answers whatever it is given, byte for byte, however damaged."""

import contextlib
import re
import socket
import threading
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def answering(answer: Callable[[bytes], bytes]) -> Iterator[str]:
    """Yield the address of a server that answers each request with `answer(request)`, and then closes the connection."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=_serve, args=(server, answer), daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.getsockname()[1]}"
        finally:
            server.shutdown(socket.SHUT_RDWR)  # wakes it up
            thread.join()


def _serve(server: socket.socket, answer: Callable[[bytes], bytes]) -> None:
    while True:
        try:
            connection, _ = server.accept()
        except OSError:
            return
        with connection, contextlib.suppress(OSError):  # a client that has gone
            connection.settimeout(10)
            connection.sendall(answer(_request(connection)))


def _request(connection: socket.socket) -> bytes:
    data = b""
    while True:
        head, end, body = data.partition(b"\r\n\r\n")
        length = re.search(rb"content-length: *(\d+)", head.lower())
        if end and len(body) >= (int(length[1]) if length else 0):
            return data
        if not (more := connection.recv(1 << 16)):
            return data
        data += more


def response(head: bytes, body: bytes) -> bytes:
    """Return `head` and `body`, with LENGTH in `head` replaced by the length of `body`."""
    return head.replace(b"LENGTH", str(len(body)).encode()) + body
