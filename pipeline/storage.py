"""Bytes behind a URI: a plain path, `file://`, `s3://`, or any other scheme that fsspec knows.

Local files and `memory://` need nothing. `s3://` goes through obstore, configured by AWS's own environment variables
(AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION, AWS_ENDPOINT_URL, ...). Other schemes need their fsspec driver.
A write is whole or absent: nobody ever finds half of it under its name. Failures are `NotFoundError` or `StorageError`;
a local refusal (no permission, read-only) is `ConfigError`.
"""

import contextlib
import errno
import functools
import os
import uuid
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import fsspec
import obstore
from obstore import exceptions as obstore_errors
from obstore.store import S3Store

from pipeline.errors import ConfigError, StorageError

_INSTANCE_METADATA = "http://169.254.169.254/"


class NotFoundError(StorageError):
    """Nothing is stored under that name."""


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
        if uri.startswith("s3://"):
            store, key = _s3(uri)
            return bytes(obstore.get(store, key).bytes())
        filesystem, name = _fsspec(uri)
        return bytes(filesystem.cat_file(name))


def read_range(uri: str, start: int, end: int) -> bytes:
    """Bytes [start, end) of what is stored under `uri`; fewer where it ends earlier."""
    with _errors(uri, "read"):
        if path := local_path(uri):
            with open(path, "rb", buffering=0) as file:
                return os.pread(file.fileno(), end - start, start)
        if uri.startswith("s3://"):
            store, key = _s3(uri)
            return bytes(obstore.get_range(store, key, start=start, end=end))
        filesystem, name = _fsspec(uri)
        return bytes(filesystem.cat_file(name, start=start, end=end))


def size(uri: str) -> int:
    """Bytes stored under `uri`."""
    with _errors(uri, "read"):
        if path := local_path(uri):
            return path.stat().st_size
        if uri.startswith("s3://"):
            store, key = _s3(uri)
            return int(obstore.head(store, key)["size"])
        filesystem, name = _fsspec(uri)
        return int(filesystem.size(name))


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
        if uri.startswith("s3://"):
            store, key = _s3(uri)
            found = obstore.list_with_delimiter(store, key.rstrip("/") + "/" if key else None)
            below = [*found["common_prefixes"], *(entry["path"] for entry in found["objects"])]
        else:
            filesystem, name = _fsspec(uri)
            below = filesystem.ls(name, detail=False) if filesystem.isdir(name) else []
        return sorted({entry.rstrip("/").rpartition("/")[2] for entry in below})


def write_bytes(uri: str, data: bytes) -> None:
    """Store `data` under `uri`, in place of what was there; a reader sees the old or the new, whole."""
    with _errors(uri, "write"):
        if path := local_path(uri):
            _write_file(path, data)
        elif uri.startswith("s3://"):
            store, key = _s3(uri)
            obstore.put(store, key, data)  # an object appears when its upload is complete
        else:
            filesystem, name = _fsspec(uri)
            filesystem.makedirs(name.rpartition("/")[0], exist_ok=True)
            filesystem.pipe_file(name, data)


def remove(uri: str) -> None:
    """Delete what is stored under `uri`, if anything is."""
    with contextlib.suppress(NotFoundError), _errors(uri, "delete"):
        if path := local_path(uri):
            path.unlink()
        elif uri.startswith("s3://"):
            store, key = _s3(uri)
            obstore.delete(store, key)
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


def _write_file(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the new name, too, outlives a power cut
    finally:
        os.close(folder)


def _s3(uri: str) -> tuple[S3Store, str]:
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    if not bucket:
        raise ConfigError(f"{uri}: an S3 address is s3://BUCKET/PATH")
    environment = tuple(sorted((name, value) for name, value in os.environ.items() if name.startswith("AWS_")))
    return _s3_store(bucket, environment), key


@functools.lru_cache(maxsize=16)
def _s3_store(bucket: str, environment: tuple[tuple[str, str], ...]) -> S3Store:
    """One connection pool per bucket and environment. obstore reads credentials from the environment by itself."""
    variables = dict(environment)
    endpoint = variables.get("AWS_ENDPOINT_URL_S3") or variables.get("AWS_ENDPOINT_URL")
    config: dict[str, Any] = {
        # AWS's own tools read the second name, obstore only the first.
        "region": variables.get("AWS_REGION") or variables.get("AWS_DEFAULT_REGION") or "us-east-1",
        **({"endpoint": endpoint} if endpoint else {}),
    }
    return S3Store(
        bucket,
        config=config,  # type: ignore[arg-type]
        client_options={"allow_http": bool(endpoint and endpoint.startswith("http://")), "timeout": "60s"},
        # Rides over ten seconds to a minute of trouble; with obstore's own backoff the retries end after three seconds.
        retry_config={
            "max_retries": 10,
            "retry_timeout": timedelta(seconds=120),
            "backoff": {
                "init_backoff": timedelta(seconds=0.2),
                "max_backoff": timedelta(seconds=10),
                "base": 4,
            },
        },
    )


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
    except (obstore_errors.PermissionDeniedError, obstore_errors.UnauthenticatedError) as error:
        raise StorageError(
            f"cannot {verb} {uri}: the store refused the credentials; check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY "
            "and the bucket's policy"
        ) from error
    except (FileNotFoundError, NotADirectoryError, obstore_errors.NotFoundError) as error:
        raise NotFoundError(f"cannot {verb} {uri}: there is no such file, object or bucket") from error
    except obstore_errors.BaseError as error:
        if _INSTANCE_METADATA in str(error):  # obstore's last resort for credentials
            raise StorageError(
                f"cannot {verb} {uri}: no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
            ) from error
        raise StorageError(f"cannot {verb} {uri}: {_first_line(error)}") from error
    except OSError as error:
        if local_path(uri) and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise ConfigError(f"cannot {verb} {uri}: {error.strerror}; name another place or mend its permissions") from error
        raise StorageError(f"cannot {verb} {uri}: {_reason(error)}") from error


def _reason(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "the disk is full; free some space, then run the same command again"
    return error.strerror or _first_line(error)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
