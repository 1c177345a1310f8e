"""Bytes behind a URI: a plain path, `file://`, an object store, or a web server. `files` has `storage.read_bytes(uri)`."""

from pipeline.storage.addresses import join, local_path
from pipeline.storage.files import (
    PART_BYTES,
    create_bytes,
    exists,
    head,
    names,
    read_bytes,
    read_range,
    remove,
    remove_empty,
    size,
    write_bytes,
    write_chunks,
)
from pipeline.storage.store_errors import ChangedError, NotFoundError, RefusedError

__all__ = [
    "PART_BYTES",
    "ChangedError",
    "NotFoundError",
    "RefusedError",
    "create_bytes",
    "exists",
    "head",
    "join",
    "local_path",
    "names",
    "read_bytes",
    "read_range",
    "remove",
    "remove_empty",
    "size",
    "write_bytes",
    "write_chunks",
]
