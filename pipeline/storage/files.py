"""Bytes behind a URI: a plain path, `file://`, an object store, a web server (to read), or what else fsspec knows.

Local files and `memory://` need nothing. s3://, gs:// and az:// go through `pipeline.storage.object_stores`, with the clouds'
own variables and credentials; http:// and https:// through `pipeline.storage.http_files`. Other schemes need their fsspec
driver. A write is whole or absent: nobody ever finds half of it under its name. Passing faults of a store are retried, and
raise `StorageError` in the end. What will not pass is raised at once: `NotFoundError`, `RefusedError` or another `ConfigError`.
"""

import contextlib
import difflib
import errno
import functools
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import fsspec
import obstore
from obstore import exceptions as obstore_errors

from pipeline.errors import ConfigError, UserError
from pipeline.redaction import hide_secrets, holds_secret
from pipeline.storage import http_files, object_stores, store_errors
from pipeline.storage.addresses import is_web, join, local_path, store_of
from pipeline.storage.retry import patiently
from pipeline.storage.store_errors import ChangedError, NotFoundError, RefusedError
from pipeline.storage.temporary import replacing

__all__ = ["ChangedError", "NotFoundError", "RefusedError", "join", "local_path"]

PART_BYTES = 16 << 20
"""Large objects go up in parts of this size."""

P = ParamSpec("P")
T = TypeVar("T")
Act = Callable[Concatenate[str, P], T]


def _store_call(verb: str, *, retry: bool = True) -> Callable[[Act[P, T]], Act[P, T]]:
    """Make a function of a URI say every backend's failure in one line, and retry what may pass."""

    def decorate(function: Act[P, T]) -> Act[P, T]:
        @functools.wraps(function)
        def called(uri: str, /, *args: P.args, **options: P.kwargs) -> T:
            if verb in ("write", "delete") and is_web(uri):
                raise ConfigError(f"cannot {verb} {hide_secrets(uri)}: HTTP is read only; name a folder or an object store")

            def ask() -> T:
                with _errors(uri, verb):
                    return function(uri, *args, **options)

            if local_path(uri) or not retry:
                return ask()
            return patiently(ask, store_of(uri), object_stores.RETRY_SECONDS)

        return called

    return decorate


@_store_call("read")
def read_bytes(uri: str) -> bytes:
    """Everything stored under `uri`."""
    if path := local_path(uri):
        return path.read_bytes()
    if found := object_stores.find(uri):
        return bytes(obstore.get(*found).bytes())
    if is_web(uri):
        return http_files.read(uri)
    filesystem, name = _fsspec(uri)
    return bytes(filesystem.cat_file(name))


@_store_call("read")
def read_range(uri: str, start: int, end: int, version: str | None = None) -> bytes:
    """Bytes [start, end) of what is stored under `uri`; fewer where it ends earlier.

    Raises ChangedError if a version (of `head`) is given and another one is there; fsspec's schemes are not asked.
    """
    if path := local_path(uri):
        with open(path, "rb", buffering=0) as file:
            if version is not None and _file_version(os.fstat(file.fileno())) != version:
                raise ChangedError(f"{uri} has changed")
            return os.pread(file.fileno(), end - start, start)
    if found := object_stores.find(uri):
        # A whole get, not `get_range`: it goes on at the byte where a connection broke.
        options: Any = {"range": (start, end)}
        result = obstore.get(*found, options=options | ({"if_match": version} if version else {}))
        if version and result.meta["e_tag"] != version:
            raise ChangedError(f"{uri} has changed")
        return bytes(result.bytes())
    if is_web(uri):
        return http_files.read_range(uri, start, end, version)
    filesystem, name = _fsspec(uri)
    return bytes(filesystem.cat_file(name, start=start, end=end))


@_store_call("read")
def head(uri: str) -> tuple[int, str | None]:
    """(bytes stored under `uri`, a name of this version of it if the store has one)."""
    if path := local_path(uri):
        status = path.stat()
        return status.st_size, _file_version(status)
    if found := object_stores.find(uri):
        meta = obstore.head(*found)
        return int(meta["size"]), meta["e_tag"]
    if is_web(uri):
        return http_files.head(uri)
    filesystem, name = _fsspec(uri)
    return int(filesystem.size(name)), None


def size(uri: str) -> int:
    """Bytes stored under `uri`."""
    return head(uri)[0]


def _file_version(status: os.stat_result) -> str:
    return f"{status.st_ino}-{status.st_size}-{status.st_mtime_ns}"


def exists(uri: str) -> bool:
    """Whether something is stored under exactly this name (a folder is not)."""
    try:
        if path := local_path(uri):
            return path.is_file()
        size(uri)
    except NotFoundError:
        return False
    return True


@_store_call("list")
def names(uri: str) -> list[str]:
    """Sorted names of the objects and folders directly below `uri`; none where there is nothing."""
    if path := local_path(uri):
        return sorted(os.listdir(path)) if path.is_dir() else []
    if object_stores.find(uri):
        below = object_stores.below(uri)
    elif is_web(uri):
        place = hide_secrets(uri.rstrip("/"))
        raise ConfigError(f"{place} cannot be listed: HTTP has no listing; name the files, as {place}/{{000..127}}.tar")
    else:
        filesystem, name = _fsspec(uri)
        below = filesystem.ls(name, detail=False) if filesystem.isdir(name) else []
    return sorted({entry.rstrip("/").rpartition("/")[2] for entry in below})


@_store_call("write")
def write_bytes(uri: str, data: bytes, private: bool = False) -> None:
    """Store `data` under `uri`, in place of what was there; a reader sees the old or the new, whole.

    A file keeps its mode. One that is `private`, or text that holds a secret, is for its owner alone (0600).
    """
    if path := local_path(uri):
        _write_file(path, [data], private=private or holds_secret(data))
    elif found := object_stores.find(uri):
        obstore.put(*found, data)  # an object appears when its upload is complete
    else:
        filesystem, name = _fsspec(uri)
        filesystem.makedirs(name.rpartition("/")[0], exist_ok=True)
        filesystem.pipe_file(name, data)


@_store_call("write", retry=False)  # chunks come once; obstore retries each part
def write_chunks(uri: str, chunks: Iterable[bytes | memoryview]) -> None:
    """The same for what is too large to be copied: object stores take it in parts, several at once."""
    if path := local_path(uri):
        _write_file(path, chunks)
    elif found := object_stores.find(uri, patient=True):
        obstore.put(*found, iter(chunks), chunk_size=PART_BYTES)
    else:
        write_bytes(uri, b"".join(chunks))


@_store_call("write")
def create_bytes(uri: str, data: bytes) -> bool:
    """Store `data` under `uri` if nothing is there; whether it was us. Of several who try, one succeeds.

    That holds on local disks and object stores; of fsspec's schemes some only look before they write.
    """
    try:
        if path := local_path(uri):
            _write_file(path, [data], new=True, private=holds_secret(data))
        elif found := object_stores.find(uri):
            obstore.put(*found, data, mode="create")
        else:
            filesystem, name = _fsspec(uri)
            filesystem.makedirs(name.rpartition("/")[0], exist_ok=True)
            filesystem.pipe_file(name, data, mode="create")
    except (FileExistsError, obstore_errors.AlreadyExistsError):
        return False
    return True


def remove(uri: str) -> None:
    """Delete what is stored under `uri`, if anything is. Only `pipeline.storage.removal` calls this: it knows what is ours."""
    with contextlib.suppress(NotFoundError):
        _remove(uri)


@_store_call("delete")
def _remove(uri: str) -> None:
    if path := local_path(uri):
        path.unlink()
    elif found := object_stores.find(uri):
        obstore.delete(*found)
    else:
        filesystem, name = _fsspec(uri)
        filesystem.rm_file(name)


def remove_empty(uri: str) -> None:
    """Delete the folder `uri` where a store has folders; one that something has come into meanwhile stays."""
    if path := local_path(uri):
        with contextlib.suppress(NotFoundError), _errors(uri, "delete"):
            try:
                path.rmdir()
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise


def _write_file(path: Path, chunks: Iterable[bytes | memoryview], *, new: bool = False, private: bool = False) -> None:
    """Raises FileExistsError if it must be `new` and is not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    mode = None if new else _mode(path)
    with replacing(path, new=new) as temporary:
        opened = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600 if private or mode is not None else 0o666)
        with open(opened, "wb") as file:
            if mode is not None:
                with contextlib.suppress(OSError):  # a file system without modes
                    os.fchmod(opened, mode & 0o600 if private else mode)
            for chunk in chunks:
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the new name, too, outlives a power cut
    finally:
        os.close(folder)


def _mode(path: Path) -> int | None:
    """Of the file there; None if there is none."""
    try:
        return stat.S_IMODE(path.stat().st_mode) & 0o777
    except OSError:
        return None


def _fsspec(uri: str) -> tuple[Any, str]:
    scheme = uri.partition("://")[0]
    known = {"file", *object_stores.STORES, "http", "https", *fsspec.available_protocols()}
    near = difflib.get_close_matches(scheme, object_stores.STORES) or difflib.get_close_matches(scheme, known)
    hint = f"; did you mean {near[0]}://?" if near and near[0] != scheme else ""
    if scheme not in known:
        ours = ", ".join(f"{name}://" for name in object_stores.STORES)
        raise ConfigError(f"{uri}: no storage is known by {scheme}://{hint or f'; use a path, {ours} or http://'}")
    try:
        filesystem, name = fsspec.core.url_to_fs(uri)
    except ImportError as error:
        raise ConfigError(f"{uri}: {scheme}:// needs a package that is not installed ({_first_line(error)}){hint}") from None
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{uri}: this is not a valid address ({_first_line(error)}){hint}") from None
    return filesystem, name


@contextlib.contextmanager
def _errors(uri: str, verb: str) -> Iterator[None]:
    """Say every backend's failure in one line."""
    try:
        yield
    except UserError:
        raise
    except obstore_errors.BaseError as error:
        raise store_errors.translate(error, uri, verb) from error
    except OSError as error:
        raise store_errors.of_os(error, uri, verb, local_path(uri) is not None) from error
    except Exception as error:
        scheme = uri.partition("://")[0]
        if local_path(uri) is not None or (scheme in object_stores.STORES and not isinstance(error, ValueError)):
            raise
        # obstore's ValueErrors are about names; drivers of fsspec raise whatever their libraries do.
        raise RefusedError(f"cannot {verb} {hide_secrets(uri)}: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
