"""Passwords of web servers from the environment, so that no address has to hold one.

BIGGAN_HTTP_LOGINS='https://USER:PASSWORD@HOST/FOLDER https://OTHER/FOLDER?SIGNATURE' is for what is below these addresses; it
goes to no other server. Without it, requests looks into ~/.netrc, or where NETRC says, by the host's name.
"""

import os
from typing import NamedTuple
from urllib.parse import SplitResult, unquote, urlsplit

from pipeline import variables
from pipeline.errors import ConfigError

_PORTS = {"http": 80, "https": 443}


class Login(NamedTuple):
    """What a request takes along."""

    user: tuple[str, str] | None = None
    """(name, password) of basic authentication."""
    query: str = ""
    """To be added to an address that has none."""


def login(uri: str) -> Login:
    """Return what $BIGGAN_HTTP_LOGINS has for `uri`: its longest address that `uri` is below. Raises ConfigError."""
    wanted, best = urlsplit(uri), None
    if wanted.username is not None:  # the address has its own
        return Login()
    for word in os.environ.get(variables.HTTP_LOGINS, "").split():
        known = _parsed(word)
        folder = known.path.rstrip("/") + "/"
        if _origin(known) == _origin(wanted) and f"{wanted.path}/".startswith(folder):
            best = known if best is None or len(known.path) > len(best.path) else best
    if best is None:
        return Login()
    user = None if best.username is None else (unquote(best.username), unquote(best.password or ""))
    return Login(user, "" if wanted.query else best.query)


def _parsed(word: str) -> SplitResult:
    try:
        known = urlsplit(word)
        if known.scheme in _PORTS and known.hostname and _origin(known):
            return known
    except ValueError:  # a port that is none
        pass
    raise ConfigError(
        f"{variables.HTTP_LOGINS} has a word that is no address: write it as https://USER:PASSWORD@HOST, with %40 for an @"
    )


def _origin(uri: SplitResult) -> tuple[str, str | None, int | None]:
    return uri.scheme, uri.hostname, uri.port or _PORTS.get(uri.scheme)
