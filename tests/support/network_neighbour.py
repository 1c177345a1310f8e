"""A neighbour on the network who does not know the token: he speaks to every port of a job, as long as it runs."""

import contextlib
import os
import socket
import threading
from collections import Counter
from collections.abc import Callable
from datetime import timedelta

import psutil
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from pipeline.messaging import signing

FATAL = '{"state": "failed", "exit_code": 78, "images": 0, "message": "\\u001b[31mrm -rf RUN"}'
LETTERS = {
    **{f"end/{rank}": FATAL for rank in range(2)},
    **{f"{serial}/outcome": '{"kind": "fenced", "message": "another training started there"}' for serial in range(1, 9)},
    "card/1": "not json",
    "gone/1": "your disk is broken",
    "end": "78",
    "order/0": '{"task": "end", "ranks": [0, 1]}',
}
"""What would have ended a job while its stores took anybody's word."""


class Recorder:
    """Stands between two machines at `port`, passes everything on, and keeps what one said to the other."""

    def __init__(self, main_port: int):
        self._main = main_port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.said: list[bytearray] = []
        """By the caller, of each connection."""
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            caller, _ = self._listener.accept()
            try:
                main = socket.create_connection(("127.0.0.1", self._main))
            except OSError:
                caller.close()
                continue
            self.said.append(bytearray())
            threading.Thread(target=self._pass, args=(caller, main, self.said[-1]), daemon=True).start()
            threading.Thread(target=self._pass, args=(main, caller, bytearray()), daemon=True).start()

    @staticmethod
    def _pass(source: socket.socket, target: socket.socket, kept: bytearray) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                kept += data
                target.sendall(data)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


class Neighbour:
    """Speaks to all that `pids` and their descendants listen at, until `stop`."""

    def __init__(self, pids: list[int], recorder: Recorder):
        self._pids, self._recorder = pids, recorder
        self._stop = threading.Event()
        self._held: list[socket.socket] = []
        self.done: Counter[str] = Counter()
        """What he came to do, and how often."""
        self.ports: set[int] = set()
        ways = (self._silent, self._garbage, self._huge, self._half, self._replayed, self._valid)
        self._threads = [threading.Thread(target=self._run, args=(way,)) for way in ways]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Leave."""
        self._stop.set()
        for thread in self._threads:
            thread.join()
        for connection in self._held:
            connection.close()

    def _run(self, way: Callable[[int], None]) -> None:
        while not self._stop.wait(0.2):
            for port in self._listening():
                self.ports.add(port)
                self.done[way.__name__] += 1
                with contextlib.suppress(OSError, RuntimeError):  # he is shown the door
                    way(port)

    def _listening(self) -> set[int]:
        found = set()
        for pid in self._pids:
            with contextlib.suppress(psutil.Error):
                for process in [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]:
                    with contextlib.suppress(psutil.Error):
                        found |= {c.laddr.port for c in process.net_connections("inet") if c.status == psutil.CONN_LISTEN}
        return found

    def _silent(self, port: int) -> None:
        self._held.append(socket.create_connection(("127.0.0.1", port), 1))
        if len(self._held) > 200:
            self._held.pop(0).close()

    def _garbage(self, port: int) -> None:
        self._say(port, os.urandom(4096))

    def _huge(self, port: int) -> None:
        self._say(port, b"\xff" * (8 << 20))

    def _half(self, port: int) -> None:
        self._say(port, signing.GREETING)

    def _replayed(self, port: int) -> None:
        for said in list(self._recorder.said)[:4]:
            self._say(port, bytes(said[: 1 << 20]))

    def _valid(self, port: int) -> None:
        """As torch's stores are spoken to."""
        store = TCPStore("127.0.0.1", port, is_master=False, timeout=timedelta(seconds=0.5), wait_for_workers=False)
        for key, value in LETTERS.items():
            store.set(key, value)

    @staticmethod
    def _say(port: int, data: bytes) -> None:
        with socket.create_connection(("127.0.0.1", port), 1) as connection:
            connection.settimeout(1)
            connection.sendall(data)
            connection.recv(1 << 16)
