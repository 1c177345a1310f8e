"""Bytes behind a URI: a plain path, `file://`, an object store (`pipeline.object_stores`), or what else fsspec knows.

Local files and `memory://` need nothing. s3://, gs://, az:// and http:// go through obstore, with the clouds' own variables
and credentials. Other schemes need their fsspec driver.
A write is whole or absent: nobody ever finds half of it under its name. Failures are `NotFoundError` or `StorageError`;
a local refusal (no permission, read-only) is `ConfigError`.
"""

import contextlib
import errno
import os
import re
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import fsspec
import obstore
from obstore import exceptions as obstore_errors

from pipeline import object_stores
from pipeline.errors import ConfigError, StorageError

PART_BYTES = 16 << 20
"""Large objects go up in parts of this size."""

# Instance metadata are the last resort for credentials.
_NO_CREDENTIALS = ("169.254.169.254", "metadata.google.internal", "Account must be specified")
_BAD_CREDENTIALS = ("Invalid Access Key", "service account file", "reading pem file")  # said before anything is asked
_WRONG_REGION = ("AuthorizationHeaderMalformed", "PermanentRedirect", "incorrectly configured region")


class NotFoundError(StorageError):
    """Nothing is stored under that name."""


class RefusedError(StorageError):
    """The store does not let us in, and will not later."""


class ChangedError(StorageError):
    """What is stored under that name is no longer what it was."""


def local_path(uri: str) -> Path | None:
    """The path of a plain path or `file://` URI; None for every other scheme."""
    scheme, separator, rest = uri.partition("://")
    if not separator:
        return Path(uri)
    return Path(unquote(rest)) if scheme == "file" else None


def join(uri: str, *parts: str) -> str:
    """`uri` with `parts` below it."""
    return "/".join([uri.rstrip("/"), *parts])


def read_bytes(uri: str) -> bytes:
    """Everything stored under `uri`."""
    with _errors(uri, "read"):
        if path := local_path(uri):
            return path.read_bytes()
        if found := object_stores.find(uri):
            return bytes(obstore.get(*found).bytes())
        filesystem, name = _fsspec(uri)
        return bytes(filesystem.cat_file(name))


def read_range(uri: str, start: int, end: int, version: str | None = None) -> bytes:
    """Bytes [start, end) of what is stored under `uri`; fewer where it ends earlier.

    Raises ChangedError if a version (of `head`) is given and another one is there; fsspec's schemes are not asked.
    """
    with _errors(uri, "read"):
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
        filesystem, name = _fsspec(uri)
        return bytes(filesystem.cat_file(name, start=start, end=end))


def head(uri: str) -> tuple[int, str | None]:
    """(bytes stored under `uri`, a name of this version of it if the store has one)."""
    with _errors(uri, "read"):
        if path := local_path(uri):
            status = path.stat()
            return status.st_size, _file_version(status)
        if found := object_stores.find(uri):
            meta = obstore.head(*found)
            return int(meta["size"]), meta["e_tag"]
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


def names(uri: str) -> list[str]:
    """Sorted names of the objects and folders directly below `uri`; none where there is nothing."""
    with _errors(uri, "list"):
        if path := local_path(uri):
            return sorted(os.listdir(path)) if path.is_dir() else []
        if found := object_stores.find(uri):
            listed = obstore.list_with_delimiter(found[0], found[1].rstrip("/") + "/" if found[1] else None)
            below = [*listed["common_prefixes"], *(entry["path"] for entry in listed["objects"])]
        else:
            filesystem, name = _fsspec(uri)
            below = filesystem.ls(name, detail=False) if filesystem.isdir(name) else []
        return sorted({entry.rstrip("/").rpartition("/")[2] for entry in below})


def write_bytes(uri: str, data: bytes) -> None:
    """Store `data` under `uri`, in place of what was there; a reader sees the old or the new, whole."""
    with _errors(uri, "write"):
        if path := local_path(uri):
            _write_file(path, [data])
        elif found := object_stores.find(uri):
            obstore.put(*found, data)  # an object appears when its upload is complete
        else:
            filesystem, name = _fsspec(uri)
            filesystem.makedirs(name.rpartition("/")[0], exist_ok=True)
            filesystem.pipe_file(name, data)


def write_chunks(uri: str, chunks: Iterable[bytes | memoryview]) -> None:
    """The same for what is too large to be copied: object stores take it in parts, several at once."""
    with _errors(uri, "write"):
        if path := local_path(uri):
            _write_file(path, chunks)
        elif found := object_stores.find(uri):
            obstore.put(*found, iter(chunks), chunk_size=PART_BYTES)
        else:
            write_bytes(uri, b"".join(chunks))


def create_bytes(uri: str, data: bytes) -> bool:
    """Store `data` under `uri` if nothing is there; whether it was us. Of several who try, one succeeds.

    That holds on local disks and object stores; of fsspec's schemes some only look before they write.
    """
    with _errors(uri, "write"):
        try:
            if path := local_path(uri):
                _write_file(path, [data], new=True)
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
    """Delete what is stored under `uri`, if anything is."""
    with contextlib.suppress(NotFoundError), _errors(uri, "delete"):
        if path := local_path(uri):
            path.unlink()
        elif found := object_stores.find(uri):
            obstore.delete(*found)
        else:
            filesystem, name = _fsspec(uri)
            filesystem.rm_file(name)


def remove_folder(uri: str) -> None:
    """Delete what is stored directly below `uri`, and the folder where a store has folders."""
    for name in names(uri):
        remove(join(uri, name))
    with contextlib.suppress(NotFoundError), _errors(uri, "delete"):
        if path := local_path(uri):
            path.rmdir()


def _write_file(path: Path, chunks: Iterable[bytes | memoryview], *, new: bool = False) -> None:
    """Raises FileExistsError if it must be `new` and is not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with open(temporary, "wb") as file:
            for chunk in chunks:
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        if new:
            os.link(temporary, path)
        else:
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the new name, too, outlives a power cut
    finally:
        os.close(folder)


def _fsspec(uri: str) -> tuple[Any, str]:
    try:
        filesystem, name = fsspec.core.url_to_fs(uri)
    except (ImportError, ValueError) as error:
        raise ConfigError(f"{uri}: no driver for this scheme ({error}); install one or use a path or s3://") from None
    return filesystem, name


@contextlib.contextmanager
def _errors(uri: str, verb: str) -> Iterator[None]:
    """Say every backend's failure in one line."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NotFoundError(f"cannot {verb} {uri}: there is no such file, object or bucket") from error
    except obstore_errors.BaseError as error:
        raise _store_error(error, uri, verb) from error
    except OSError as error:
        if local_path(uri) and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise ConfigError(f"cannot {verb} {uri}: {error.strerror}; name another place or mend its permissions") from error
        raise StorageError(f"cannot {verb} {uri}: {_reason(error)}") from error


def _store_error(error: obstore_errors.BaseError, uri: str, verb: str) -> StorageError | ConfigError:
    """What a store's answer means. A listing that fails has no class of its own, only the status in its text."""
    text = str(error)
    match = re.search(r"status code: (\d{3})", text)
    status = match[1] if match else ""
    if isinstance(error, obstore_errors.PreconditionError):
        return ChangedError(f"{uri} has changed")
    if any(sign in text for sign in _WRONG_REGION):
        return ConfigError(f"cannot {verb} {uri}: its bucket is in another region; set AWS_REGION to that")
    if any(sign in text for sign in _NO_CREDENTIALS):
        return RefusedError(f"cannot {verb} {uri}: no credentials; set {_credentials(uri)}")
    refused = isinstance(error, obstore_errors.PermissionDeniedError | obstore_errors.UnauthenticatedError)
    if refused or status in ("401", "403") or any(sign in text for sign in _BAD_CREDENTIALS):
        return RefusedError(
            f"cannot {verb} {uri}: the store refused the credentials; check {_credentials(uri)} and the bucket's policy"
        )
    if isinstance(error, obstore_errors.NotFoundError) or status == "404":
        return NotFoundError(f"cannot {verb} {uri}: there is no such file, object or bucket")
    return StorageError(f"cannot {verb} {uri}: {_first_line(error)}")


def _credentials(uri: str) -> str:
    return {
        "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
        "gs": "GOOGLE_APPLICATION_CREDENTIALS",
        "http": "the address",
        "https": "the address",
    }.get(uri.partition("://")[0], "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY")


def _reason(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "the disk is full; free some space, then run the same command again"
    return error.strerror or _first_line(error)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
