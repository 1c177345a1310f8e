"""Parts of a URI: its local path, its folder and name, its query, the store that it is in."""

import os
from pathlib import Path
from urllib.parse import quote, unquote

from pipeline.wording import hide_secrets

WEB = ("http://", "https://")


def local_path(uri: str) -> Path | None:
    """The path of a plain path or `file://` URI, with `~` for the home folder; None for every other scheme."""
    scheme, separator, rest = uri.partition("://")
    if not separator:
        return Path(os.path.expanduser(uri))
    return Path(unquote(rest.removeprefix("localhost"))) if scheme == "file" else None


def is_web(uri: str) -> bool:
    """Whether `uri` is on a web server, which is only read."""
    return uri.startswith(WEB)


def split_query(uri: str) -> tuple[str, str]:
    """(address, query with its `?`): only web addresses have one, elsewhere `?` is a letter of the name."""
    address, mark, query = uri.partition("?") if is_web(uri) else (uri, "", "")
    return address, mark + query


def file_name(place: str, uri: str) -> str:
    """The name of a file as it is, from its `place` in `uri`: without the percent codes of web and file:// addresses."""
    return unquote(place) if _is_quoted(uri) else place


def join(uri: str, *parts: str) -> str:
    """`uri` with `parts` below it; a query stays at the end."""
    address, query = split_query(uri)
    return "/".join([address.rstrip("/"), *(map(quote, parts) if _is_quoted(uri) else parts)]) + query


def store_of(uri: str) -> str:
    """`SCHEME://HOST`, for messages."""
    scheme, separator, rest = uri.partition("://")
    return hide_secrets(scheme + separator + rest.partition("/")[0])


def _is_quoted(uri: str) -> bool:
    return is_web(uri) or uri.startswith("file://")
