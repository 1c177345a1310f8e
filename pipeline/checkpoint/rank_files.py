"""The files of a checkpoint, as a rank writes them; `pipeline.checkpoint.format` commits them."""

import functools
import hashlib
import json
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from pipeline import storage
from pipeline.checkpoint.commit_document import CommitRow, Files, numel
from pipeline.checkpoint.failpoints import fail_point
from pipeline.engine.slices import Slice
from pipeline.errors import ConfigError, DataError
from pipeline.storage import removal

if TYPE_CHECKING:
    from pipeline.checkpoint.format import Progress

_TENSORS = re.compile(r"[a-z_]+\.rank\d{5,}\.safetensors")
_SMALL = {
    "COMMIT.json": removal.has("commit", "sha256"),
    "state.json": removal.has("progress"),
    "evaluation.json": removal.has(),
}
"""The other files of a checkpoint, and what proves that one is ours."""
_LONGEST_HEADER = 100_000_000
"""Bytes, of safetensors."""


def write_part(folder: str, part: str, rank: int, slices: list[Slice]) -> Files:
    """Write what `rank` has of `part`, fp32 on the host, without copying it; what COMMIT says of the file."""
    if not slices:
        return {}
    tables, end = {}, 0
    for s in slices:
        start, end = end, end + 4 * len(s.data)
        shape = s.shape if len(s.data) == numel(s.shape) else [len(s.data)]
        tables[s.name] = {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}
    # https://huggingface.co/docs/safetensors: length of the header, header, data.
    header = json.dumps(tables).encode()
    header += b" " * (-len(header) % 8)
    chunks: list[bytes | memoryview] = [len(header).to_bytes(8, "little") + header]
    chunks += [s.data.numpy().data.cast("B") for s in slices]
    row = _write(folder, name := f"{part}.rank{rank:05d}.safetensors", chunks)
    return {name: replace(row, slices={s.name: [s.offset, len(s.data)] for s in slices})}


def write_state(folder: str, progress: "Progress", state: Mapping[str, Any]) -> Files:
    data = json.dumps({"progress": asdict(progress), **state}, indent=1).encode()
    return {"state.json": _write(folder, "state.json", [data])}


def _write(folder: str, name: str, chunks: list[bytes | memoryview]) -> CommitRow:
    digest, size = hashlib.sha256(), 0

    def hashed() -> Iterator[bytes | memoryview]:
        nonlocal size
        for i, chunk in enumerate(chunks):
            if i == len(chunks) // 2:
                fail_point("upload")
            for start in range(0, len(chunk), storage.PART_BYTES):
                piece = chunk[start : start + storage.PART_BYTES]
                digest.update(piece)
                size += len(piece)
                yield piece

    fail_point("write")
    storage.write_chunks(storage.join(folder, name), hashed())
    fail_point("written")
    return CommitRow(size, digest.hexdigest())


def is_own(name: str) -> bool:
    """Return whether a file of a checkpoint may be called so."""
    return name in _SMALL or _TENSORS.fullmatch(name) is not None


def holds_any(folder: str) -> bool:
    """Return whether files of ours are in the folder, by name and content, and it is none elsewhere behind a link."""
    return not removal.is_link(folder) and any(_proven(folder, name) for name in storage.names(folder))


def remove(folder: str, listed: Collection[str] = ()) -> None:
    """Delete a checkpoint, or what there is of it: files of our names that COMMIT has `listed`, or whose content is ours.

    Other files stay, and the folder with them.
    """
    if removal.is_link(folder):
        return
    # COMMIT goes first: a kill in between must not leave something that looks whole.
    removal.remove(storage.join(folder, "COMMIT.json"), _SMALL["COMMIT.json"])
    fail_point("retain")
    removal.remove_folder(folder, lambda name: is_own(name) and (name in listed or _proven(folder, name)), is_own)


def _proven(folder: str, name: str) -> bool:
    place = storage.join(folder, name)
    try:
        if name in _SMALL:
            return _SMALL[name](storage.read_bytes(place))
        head = storage.read_range(place, 0, 9) if _TENSORS.fullmatch(name) else b""
    except ConfigError:  # a folder, or gone, or not to be read: no proof
        return False
    return head[8:] == b"{" and int.from_bytes(head[:8], "little") <= _LONGEST_HEADER


@functools.lru_cache(maxsize=4096)
def run_of(folder: str, sha256: str) -> str | None:
    """Return whose run the state.json of this hash in `folder` is of. Raises NotFoundError or DataError if it is not there."""
    data = storage.read_bytes(storage.join(folder, "state.json"))
    if hashlib.sha256(data).hexdigest() != sha256:
        raise DataError(f"{folder}/state.json is damaged: restore it from a copy, or use another checkpoint")
    run: str | None = json.loads(data).get("run")
    return run
