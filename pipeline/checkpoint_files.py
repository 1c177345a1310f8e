"""The files of a checkpoint, as a rank writes them; `pipeline.checkpoint` commits them."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from pipeline import storage
from pipeline.failpoints import fail_point
from pipeline.slices import Slice

if TYPE_CHECKING:
    from pipeline.checkpoint import Progress

Files = dict[str, dict[str, Any]]
"""By name: `bytes`, `sha256`, and for tensors `slices`: name -> [offset, count]."""


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
    return {name: row | {"slices": {s.name: [s.offset, len(s.data)] for s in slices}}}


def write_state(folder: str, progress: "Progress", state: Mapping[str, Any]) -> Files:
    data = json.dumps({"progress": asdict(progress), **state}, indent=1).encode()
    return {"state.json": _write(folder, "state.json", [data])}


def _write(folder: str, name: str, chunks: list[bytes | memoryview]) -> dict[str, Any]:
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
    return {"bytes": size, "sha256": digest.hexdigest()}


def numel(shape: Iterable[int]) -> int:
    """Return how many numbers a tensor of this shape has."""
    numbers = 1
    for size in shape:
        numbers *= size
    return numbers
