"""Letters to and from the job's mailbox (`pipeline.messaging.mailbox`), for its processes on every machine."""

import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict

from pipeline.messaging import signing
from pipeline.messaging.mailbox import WAIT, MailboxAnswer, MailboxRequest
from pipeline.messaging.signing import HEADER, Seal, Unsealed
from pipeline.untrusted import parse

_SECONDS = 30.0
"""After which a main node that says nothing is gone."""


class MailLost(ConnectionError):
    """The mailbox cannot be reached, or has gone: with it the main node."""


class MailRefused(Exception):
    """The mailbox has another token."""


class Mail:
    """A connection to the mailbox at `address` and `port`, for any thread. Raises MailLost, MailRefused, as every call may."""

    def __init__(self, address: str, port: int, token: str, seconds: float = _SECONDS):
        self._place, self._token, self._seconds = (address, port), token, seconds
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        with self._lock, _lost():
            self._connect()

    def close(self) -> None:
        """End the connection."""
        if self._socket:
            self._socket.close()
            self._socket = None

    def set(self, key: str, value: str) -> None:
        """Leave a letter, in place of one that is there."""
        self._ask(MailboxRequest("set", key, value))

    def find(self, key: str, seconds: float = 0.0) -> str | None:
        """Return a letter, or None if there is none within `seconds`."""
        deadline = time.monotonic() + seconds
        while True:
            left = max(0.0, deadline - time.monotonic())
            value = self._ask(MailboxRequest("get", key, seconds=min(WAIT, left))).value
            if value is not None or not left:
                return value

    def get(self, key: str, seconds: float) -> str:
        """Return a letter. Raises TimeoutError if there is none within `seconds`."""
        if (value := self.find(key, seconds)) is None:
            raise TimeoutError(f"no letter {key} within {seconds:g} s")
        return value

    def check(self, key: str) -> bool:
        """Return whether there is a letter."""
        return self.find(key) is not None

    def add(self, key: str) -> int:
        """Return how often this has been called for `key`, with this time."""
        return self._ask(MailboxRequest("add", key)).count

    def delete(self, key: str) -> None:
        """Forget a letter."""
        self._ask(MailboxRequest("delete", key))

    def _connect(self) -> None:
        self._socket = socket.create_connection(self._place, self._seconds)
        try:
            challenge = self._read(signing.CHALLENGE)
            reply = signing.reply(self._token, challenge)
            self._socket.sendall(reply)
            if self._read(signing.PROOF) != signing.proof(self._token, challenge, reply):
                raise MailRefused("the mailbox has another token")
        except BaseException:
            self.close()
            raise
        self._going, self._coming = (Seal(self._token, challenge, reply, way) for way in (b"to main", b"from main"))
        self._socket.settimeout(_SECONDS)

    def _ask(self, request: MailboxRequest) -> MailboxAnswer:
        with self._lock, _lost():
            if not self._socket:
                self._connect()
            assert self._socket
            try:
                self._socket.sendall(self._going.wrap(json.dumps(asdict(request)).encode()))
                header = self._read(HEADER)
                answer = self._coming.check(header, self._read(self._coming.length(header)))
            except BaseException:  # a signal, say: the answer would be taken for that of the next request
                self.close()
                raise
        return parse(MailboxAnswer, answer, "the mailbox")

    def _read(self, count: int) -> bytes:
        assert self._socket
        data = bytearray()
        while len(data) < count:
            if not (part := self._socket.recv(count - len(data))):
                raise MailLost("connection closed")
            data += part
        return bytes(data)


@contextlib.contextmanager
def _lost() -> Iterator[None]:
    try:
        yield
    except MailLost:
        raise
    except (OSError, Unsealed) as error:
        raise MailLost(str(error)) from None
