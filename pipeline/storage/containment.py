"""Places that a file names: a name stays inside its folder and an address in its store, whoever wrote the file.

What the user types is the user's word. What a manifest, journal, checkpoint or run folder says is not: it may come from
somebody else. Whatever joins a name out of such a document to a folder does it here. `pipeline.storage.trusted_stores` knows
which other stores the user has named.
"""

import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

from pipeline.errors import DataError
from pipeline.storage.addresses import is_web, join, local_path
from pipeline.wording import printable


def inside(folder: Path, name: object, said_in: object) -> Path:
    """Return the path of the file `name` below the local `folder`, for content that is shown or sent.

    Raises DataError, which names the document `said_in`, unless `name` is a relative path without `..` that leads to a file
    or folder inside the folder, also after all links are followed, or to nothing.
    """
    path = folder / _relative(name, said_in)
    if not path.resolve().is_relative_to(folder.resolve()):
        raise _outside(name, said_in, "a link out of its folder: put the file itself there")
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise _outside(name, said_in, "a pipe or device: remove it")  # to open a pipe would wait for ever
    return path


def below(uri: str, name: object, said_in: object) -> str:
    """Return the address of `name` below `uri`, for content that is compared with a checksum before it is used.

    Links are followed: folders of links to shards or weights are usual, and a checksum tells what was meant. Raises DataError
    as `inside`; for web servers also for a `..` in percent codes, which some of them decode twice.
    """
    relative = _relative(name, said_in)
    decoded = relative
    while is_web(uri) and (again := unquote(decoded)) != decoded:
        decoded = _relative(again, said_in)
    return join(uri, relative)


def same_store(own: str, other: str) -> bool:
    """Whether `other` is in the store of `own`: both on local disks, or scheme and bucket or server are the same."""
    return bool(local_path(own) and local_path(other)) or (not local_path(other) and store_key(own) == store_key(other))


def store_key(uri: str) -> str:
    """Return one text for all addresses of a store: `SCHEME://BUCKET`, `SCHEME://HOST:PORT`, a local path as `file://`.

    Of a `sqlite:///FILE` the store is the file. Raises DataError for an address that no program can understand.
    """
    if found := re.match(r"sqlite(?:\+\w+)?:///([^?]+)", uri):
        return f"file://{Path(unquote(found[1])).expanduser().resolve()}"
    if path := local_path(uri):
        return f"file://{path.absolute().resolve()}"
    scheme, _, rest = uri.partition("://")
    authority = re.split(r"[/?#\\]", rest, maxsplit=1)[0]
    if scheme in ("abfs", "abfss"):  # abfs://CONTAINER@ACCOUNT
        return f"{scheme}://{authority}"
    try:
        parts = urlsplit(f"//{authority}")
        host, port = parts.hostname or "", parts.port or {"http": 80, "https": 443}.get(scheme)
    except ValueError:
        raise DataError(f"{printable(uri)[:80]} is not an address") from None
    if not is_web(uri) and "+" not in scheme and "@" not in authority:
        return f"{scheme}://{authority}"  # the case of a bucket's name counts
    return f"{scheme}://{host}" + (f":{port}" if port else "")


def _relative(name: object, said_in: object) -> str:
    if not isinstance(name, str):
        raise _outside(name, said_in, "not a file name")
    parts = re.split(r"[/\\]", name)
    if "\0" in name or any(part in ("", ".", "..") for part in parts):
        raise _outside(name, said_in, "not a path inside its folder")
    return name


def _outside(name: object, said_in: object, why: str) -> DataError:
    return DataError(f"{said_in} names the file '{printable(str(name))[:80]}', which is {why}")
