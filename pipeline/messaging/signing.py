"""How processes of one job know each other on a network that anybody may reach: by the job's token, which never travels.

    main   -> CHALLENGE  a greeting and 32 random bytes
    other  -> REPLY      32 random bytes of its own, and the token's HMAC of both
    main   -> PROOF      another HMAC: both know the token now; or zeros, and the connection closes
    both   -> frames     length (4 bytes), HMAC (32 bytes), payload

The key of the frames is made of the token and both random values, and each frame's HMAC covers its direction and number. What
was recorded of another connection, sent twice, left out or changed is noticed. Nothing is encrypted. No network in here.
"""

import hashlib
import hmac
import secrets
import struct

GREETING = b"biggan mail 1\n"
CHALLENGE, REPLY, PROOF = len(GREETING) + 32, 64, 32
"""Bytes of each step."""
REFUSAL = bytes(PROOF)
HEADER = 4 + 32
"""Bytes of a frame before its payload."""
MOST = 4 << 20
"""Bytes of a payload."""


class Unsealed(Exception):
    """What came is not of this job, damaged, too long, sent twice or out of order: the connection is of no use any more."""


def challenge() -> bytes:
    """Return what the main process says first."""
    return GREETING + secrets.token_bytes(32)


def reply(token: str, challenge: bytes) -> bytes:
    """Return what the other process answers. Raises Unsealed if the other side does not speak this protocol."""
    if not challenge.startswith(GREETING):
        raise Unsealed("something else listens there")
    own = secrets.token_bytes(32)
    return own + _sign(token.encode(), b"reply", challenge, own)


def knows(token: str, challenge: bytes, reply: bytes) -> bool:
    """Return whether who sent `reply` knows the token."""
    return hmac.compare_digest(reply[32:], _sign(token.encode(), b"reply", challenge, reply[:32]))


def proof(token: str, challenge: bytes, reply: bytes) -> bytes:
    """Return what the main process, and nobody without the token, ends the handshake with."""
    return _sign(token.encode(), b"proof", challenge, reply)


class Seal:
    """Frames of one connection in one direction, `b"to main"` or `b"from main"`: either all that are sent, or all that come."""

    def __init__(self, token: str, challenge: bytes, reply: bytes, direction: bytes):
        self._key = _sign(token.encode(), b"frames", challenge, reply, direction)
        self._count = 0

    def wrap(self, payload: bytes) -> bytes:
        """Return the next frame. Raises ValueError for a payload longer than MOST."""
        if len(payload) > MOST:
            raise ValueError(f"a message of {len(payload):,} bytes: {MOST:,} at most")
        return struct.pack(">I", len(payload)) + self._next(payload) + payload

    def length(self, header: bytes) -> int:
        """Return the bytes of payload that follow a header. Raises Unsealed if that is more than may be."""
        (length,) = struct.unpack(">I", header[:4])
        if length > MOST:
            raise Unsealed(f"a message of {length:,} bytes")
        return int(length)

    def check(self, header: bytes, payload: bytes) -> bytes:
        """Return the payload if it is the next one. Raises Unsealed."""
        if not hmac.compare_digest(header[4:], self._next(payload)):
            raise Unsealed("a message that is not this job's, or not the next one")
        return payload

    def _next(self, payload: bytes) -> bytes:
        self._count += 1
        return _sign(self._key, struct.pack(">Q", self._count), payload)


def _sign(key: bytes, *parts: bytes) -> bytes:
    """HMAC of parts, each with its length before it: where one ends is part of what is signed."""
    mac = hmac.new(key, digestmod=hashlib.sha256)
    for part in parts:
        mac.update(struct.pack(">Q", len(part)))
        mac.update(part)
    return mac.digest()
