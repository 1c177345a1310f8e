"""What COMMIT.json says of a checkpoint, checked alike by who writes and who reads: each number is in one file, once.

Its SHA-256 is its own, so it proves nothing but a whole copy. Extents are compared here, before memory is asked for: cheap.
"""

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Annotated, Any

from pydantic import Field

from pipeline.errors import ConfigError, DataError
from pipeline.untrusted import parse, parsing
from pipeline.wording import printable

COMMIT = "COMMIT.json"
FORMAT = 2
Shapes = dict[str, dict[str, list[int]]]

_Size = Annotated[int, Field(ge=0, lt=1 << 48)]
_Pair = Annotated[list[_Size], Field(min_length=2, max_length=2)]
_Shape = Annotated[list[_Size], Field(max_length=8)]


@dataclass(frozen=True)
class CommitRow:
    """What COMMIT says of a file."""

    bytes: _Size
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    slices: dict[str, _Pair] | None = None
    """Of a file of tensors: name -> [offset, count]."""

    def as_json(self) -> dict[str, Any]:
        return {key: value for key, value in asdict(self).items() if value is not None}


Files = dict[str, CommitRow]
"""By name."""


@dataclass(frozen=True)
class _Commit:
    time: float
    files: dict[Annotated[str, Field(pattern=r"^\w[\w.-]*$")], CommitRow]
    shapes: dict[str, dict[str, _Shape]]


@dataclass(frozen=True)
class _Document:
    commit: _Commit


@dataclass(frozen=True)
class _Table:
    dtype: str
    shape: _Shape
    data_offsets: _Pair


def write_commit(files: Files, shapes: Shapes, time: float) -> bytes:
    """Return the document. Raises RuntimeError if `files` are not all of each tensor of `shapes`: a bug of the writer."""
    if wrong := coverage_fault(files, shapes):
        raise RuntimeError(wrong)
    body = {"format": FORMAT, "time": time, "files": {name: row.as_json() for name, row in files.items()}, "shapes": shapes}
    return json.dumps({"commit": body, "sha256": _digest(body)}).encode()


def read_commit(folder: str, data: bytes) -> tuple[Files, Shapes, float]:
    """Return files, shapes, time. Raises DataError if it is damaged or contradicts itself, ConfigError for a newer format."""
    what = f"{folder} has a damaged {COMMIT}"
    with parsing(what):
        document = json.loads(data)
        intact = isinstance(document, dict) and _digest(document["commit"]) == document["sha256"]
        version = document["commit"]["format"] if intact else None
    if type(version) is not int:
        raise DataError(what)
    if version != FORMAT:
        raise ConfigError(f"{folder} has format {version}, this version reads format {FORMAT}: use the version that wrote it")
    body = parse(_Document, data, what).commit
    wrong = "it lists no state.json" if "state.json" not in body.files else coverage_fault(body.files, body.shapes)
    if wrong:
        raise DataError(f"{what}: {printable(wrong[:200])}")
    return body.files, body.shapes, body.time


def coverage_fault(files: Files, shapes: Shapes) -> str:
    """Return which tensor has gaps, overlaps or numbers too many, or which file could not hold its own; "" if none."""
    places: dict[tuple[str, str], list[list[int]]] = defaultdict(list)
    for file, row in files.items():
        part, slices = file.partition(".")[0], row.slices or {}
        if 4 * sum(count for _, count in slices.values()) > row.bytes:
            return f"{file} of {row.bytes:,} bytes cannot hold its slices"
        for name, place in slices.items():
            if name not in shapes.get(part, {}):
                return f"{file} has {name}, which is no tensor of {part}"
            places[part, name].append(place)
    for part, tensors in shapes.items():
        for name, shape in tensors.items():
            end, found = 0, sorted(places[part, name])
            for offset, count in found:
                if offset != end:
                    break
                end += count
            else:
                if end == numel(shape):
                    continue
            return f"{part} {name} {shape} is saved as {found}"
    return ""


def content_fault(row: CommitRow, data: bytes) -> str:
    """Return how the tensors in a file differ from the slices that its `row` lists: in name, number or type; "" if they do not.

    Only the header is read: https://huggingface.co/docs/safetensors.
    """
    if row.slices is None:
        return ""
    length = int.from_bytes(data[:8], "little")
    try:
        tables = parse(dict[str, _Table], data[8 : 8 + length], "its header")
    except DataError as error:
        return str(error)
    found = {name: numel(table.shape) for name, table in tables.items()}
    if found != {name: count for name, (_, count) in row.slices.items()}:
        return "it has other tensors"
    if types := {table.dtype for table in tables.values()} - {"F32"}:
        return f"it has numbers of type {printable(min(types)[:20])}, not F32"
    end = 0
    for table in sorted(tables.values(), key=lambda table: table.data_offsets):
        start, stop = table.data_offsets
        if start != end or stop - start != 4 * numel(table.shape):
            return "its tensors have gaps or overlap"
        end = stop
    return "" if 8 + length + end == len(data) else "its tensors are not all of it"


def numel(shape: Iterable[int]) -> int:
    """Return how many numbers a tensor of this shape has."""
    numbers = 1
    for size in shape:
        numbers *= size
    return numbers


def _digest(body: Any) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
