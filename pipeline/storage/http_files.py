"""Files of a web server: whole, or by ranges. Nothing is listed and nothing is written.

Addresses may have a query (presigned addresses), answers may redirect. Only GET is used, as signed addresses refuse HEAD.
"""

import functools
import os
import re
import socket
import ssl
import time
from typing import NamedTuple
from urllib.parse import urlsplit

import requests
from requests.adapters import HTTPAdapter

from pipeline import variables
from pipeline.errors import ConfigError, StorageError
from pipeline.storage import object_stores
from pipeline.storage.addresses import WEB
from pipeline.storage.logins import login
from pipeline.storage.store_errors import (
    PASSING_STATUS,
    ChangedError,
    RefusedError,
    absent,
    answered,
    bad_certificate,
    no_tls,
    unknown_host,
)
from pipeline.wording import hide_secrets, printable

_PIECE = 1 << 20


class _Answer(NamedTuple):
    data: bytes
    whole: bool
    """Whether the server sent the file from its first byte, as if no range had been asked for."""
    more: bool
    """Whether it would have sent more than was asked for."""
    size: int | None
    """Of the file."""
    version: str | None


def read(uri: str) -> bytes:
    """Return the whole file at `uri`."""
    return _get(uri, None).data


def read_range(uri: str, start: int, end: int, version: str | None = None) -> bytes:
    """Return bytes [start, end) of the file at `uri`; fewer where it ends earlier.

    Raises ChangedError if `version` (of `head`) is given and another one is there, RefusedError if the server has no ranges.
    """
    answer = _get(uri, (start, end))
    if version and answer.version != version:
        raise ChangedError(f"{hide_secrets(uri)} has changed")
    # Some servers send 200 for a range that is the whole file: whether they have ranges, a true part of it tells.
    if answer.whole and (start or answer.more or (len(answer.data) > 1 and _get(uri, (0, 1)).whole)):
        raise RefusedError(
            f"cannot read {hide_secrets(uri)}: its server cannot send parts of a file (no HTTP ranges); serve the files with a "
            "server that can, such as nginx, or copy them to a disk or an object store"
        )
    return answer.data


def head(uri: str) -> tuple[int, str | None]:
    """Return (bytes, ETag or None) of the file at `uri`."""
    answer = _get(uri, (0, 1))
    if answer.size is None:
        raise RefusedError(
            f"cannot read {hide_secrets(uri)}: its server does not say how long the file is (no Content-Length); serve the "
            "files with another server, such as nginx, or copy them to a disk or an object store"
        )
    return answer.size, answer.version


@functools.cache
def _session(_process: int) -> requests.Session:
    """One pool of connections per process, which threads share."""
    session = requests.Session()
    session.verify = _authorities()
    for scheme in WEB:
        session.mount(scheme, HTTPAdapter(pool_connections=16, pool_maxsize=64))
    return session


def _authorities() -> str | bool:
    """Where the machine's trusted certificates are, as `SSL_CERT_FILE` or its system says; else those that requests brings."""
    paths = ssl.get_default_verify_paths()
    return paths.cafile or (paths.capath if paths.capath and os.listdir(paths.capath) else True)


def _get(uri: str, wanted: tuple[int, int] | None) -> _Answer:
    try:
        host = urlsplit(uri).hostname
    except ValueError:
        host = None
    if not host:
        raise ConfigError(f"{hide_secrets(uri)}: this is not a valid address, as {uri.partition(':')[0]}://HOST/PATH")
    headers = {"Accept-Encoding": "identity"}  # a range is one of the stored bytes, not of compressed ones
    if wanted:
        headers["Range"] = f"bytes={wanted[0]}-{wanted[1] - 1}"
    seconds = object_stores.REQUEST_SECONDS
    user, query = login(uri)
    address = f"{uri}?{query}" if query else uri
    try:
        with _session(os.getpid()).get(
            address, auth=user, headers=headers, stream=True, timeout=(min(5, seconds), seconds)
        ) as response:
            return _read(response, uri, wanted, time.monotonic() + seconds)
    except (requests.RequestException, OSError) as error:
        raise _failure(error, uri) from error


def _read(response: requests.Response, uri: str, wanted: tuple[int, int] | None, deadline: float) -> _Answer:
    status, version = response.status_code, response.headers.get("ETag")
    start, end = wanted or (0, None)
    span = re.fullmatch(r"bytes (?:(\d{1,18})-\d+|\*)/(\d{1,18}|\*)", response.headers.get("Content-Range", ""), re.ASCII)
    size = int(span[2]) if span and span[2] != "*" else None
    if status == 416 and end == 1:  # an empty file has no first byte
        return _Answer(b"", False, False, size or 0, version)
    if status == 416:
        raise ChangedError(f"{hide_secrets(uri)} is shorter than it was")
    if status not in (200, 206):
        raise _refusal(response, uri)
    if status == 206 and span and span[1] and int(span[1]) != start:
        raise StorageError(f"cannot read {hide_secrets(uri)}: the server sent another range than was asked for")
    if (
        size is None
        and status == 200
        and re.fullmatch(r"\d{1,18}", length := response.headers.get("Content-Length", ""), re.ASCII)
    ):
        size = int(length)
    whole = wanted is not None and status == 200
    if whole and end is not None and (start or (size or 0) > end):
        return _Answer(b"", whole, True, size, version)  # what is not read closes the connection
    data = _body(response, uri, None if end is None else end - start, deadline)
    more = end is not None and len(data) > end - start
    if whole and not more:
        size = len(data)
    return _Answer(data[: end - start] if more and end is not None else data, whole, more, size, version)


def _body(response: requests.Response, uri: str, most: int | None, deadline: float) -> bytes:
    """Return the body; of one that is longer than `most` bytes at least one more, so that this shows."""
    pieces, count = [], 0
    for piece in response.iter_content(_PIECE):
        pieces.append(piece)
        count += len(piece)
        if most is not None and count > most:
            break
        if time.monotonic() > deadline:
            raise StorageError(f"cannot read {hide_secrets(uri)}: no answer in time")
    return b"".join(pieces)


def _refusal(response: requests.Response, uri: str) -> ConfigError | StorageError:
    """Return what a status other than success means."""
    status, shown = response.status_code, hide_secrets(uri)
    if status in (404, 410):
        return absent(uri, "read")
    body = next(response.iter_content(4096), b"").decode(errors="replace")
    said = printable(answered(f"{status} {response.reason}".strip()[:200], body))
    if status in PASSING_STATUS:
        return StorageError(f"cannot read {shown}: {said}")
    if status in (401, 403, 407):
        signed = "a signed address expires, and opens only the file that it was made for: get a new one" if "?" in uri else ""
        given = f"check the address, and its password in ~/.netrc or {variables.HTTP_LOGINS}"
        return RefusedError(f"cannot read {shown}: the server refused it ({said}); {signed or given}")
    return RefusedError(f"cannot read {shown}: the server refused it ({said})")


def _failure(error: Exception, uri: str) -> ConfigError | StorageError:
    """Return what a failure without an answer means: the first cause in a chain of wrappers."""
    chain: list[BaseException] = [error]
    while (inner := chain[-1].__cause__ or chain[-1].__context__) is not None:
        chain.append(inner)
    for cause in chain:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return bad_certificate(uri, "read", cause.verify_message)
        if isinstance(cause, ssl.SSLError) and cause.reason == "WRONG_VERSION_NUMBER":
            return no_tls(uri, "read")
        if isinstance(cause, socket.gaierror) and cause.errno == socket.EAI_NONAME:
            return unknown_host(uri, "read", urlsplit(uri).hostname or "")
    shown = hide_secrets(uri)
    if isinstance(error, requests.exceptions.TooManyRedirects):
        return RefusedError(f"cannot read {shown}: its server redirects in a circle; check the address")
    if isinstance(error, ValueError):  # InvalidURL, InvalidSchema, MissingSchema
        return ConfigError(f"cannot read {shown}: this is not a valid address")
    if isinstance(error, requests.exceptions.Timeout):
        return StorageError(f"cannot read {shown}: no answer in time")
    last = next((cause for cause in reversed(chain) if isinstance(cause, OSError) and cause.strerror), chain[-1])
    said = getattr(last, "strerror", None) or str(last).strip()[:200] or type(last).__name__
    return StorageError(f"cannot read {shown}: {printable(said)}")
