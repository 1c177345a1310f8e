"""The column of labels in parquet files: integers, named by Hugging Face's ClassLabel if there is one, or text."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import ConfigError, DataError
from pipeline.packing.sources.base import Ints
from pipeline.untrusted import parsing
from pipeline.wording import plural

_NAME = 1000  # bytes of a class name


def features(schema: Any) -> dict[str, Any]:
    """Return what Hugging Face notes on the columns."""
    try:
        with parsing("huggingface"):
            noted = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"].items()
    except DataError:
        return {}
    return {name: feature for name, feature in noted if isinstance(feature, dict)}


def read_labels(path: Path, label: str) -> Any:
    """Return the labels of a file as an array of integers or text. Raises DataError for a text that is no name.

    Text is read as a dictionary first: a long one may stand in each row.
    """
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    with pq.ParquetFile(path, read_dictionary=[label]) as file:
        column = file.read([label]).column(0)
    for chunk in column.chunks:
        if pa.types.is_dictionary(chunk.type) and (longest := pc.max(pc.binary_length(chunk.dictionary)).as_py() or 0) > _NAME:
            raise DataError(f"SRC {path} has a {label} of {longest:,} bytes: make it a name, or add --label none for one class")
    return _plain(column)


def number(place: str, split: str, files: Sequence[Any], schema: Any, column: str) -> tuple[Ints, tuple[str, ...]]:
    """Return labels [n] and class names, of the arrays of all `files` of a split. Raises ConfigError where they are none."""
    import pyarrow as pa
    import pyarrow.compute as pc

    where = f"SRC {place} {split}".rstrip()
    labels = pa.concat_arrays(_one_type(place, column, files))
    if len(labels) == 0:
        raise ConfigError(f"{where} has no rows: get it again")
    if pa.types.is_large_string(labels.type):
        classes = tuple(sorted(pc.unique(labels).to_pylist()))
        if empty := [name for name in classes if not name.strip()]:
            raise ConfigError(f"{where}: rows have an empty {column} ({empty[0]!r}); fix it")
        return pc.index_in(labels, pa.array(classes, labels.type)).to_numpy(zero_copy_only=False).astype(np.int64), classes
    numbers = labels.to_numpy().astype(np.int64)
    names = features(schema).get(column, {}).get("names")
    if not names and numbers.max() >= max(1000, len(numbers)):
        raise ConfigError(
            f"{where}: its column {column} has the label {numbers.max()} for {plural(len(numbers), 'image')}: "
            "number the classes from 0, or add --label none for one class"
        )
    if names and not (isinstance(names, list) and all(isinstance(name, str | int) for name in names)):
        raise DataError(f"{where}: the names of its column {column} are no list of text: get it again")
    return numbers, tuple(map(str, names if names else range(int(numbers.max()) + 1)))


def _plain(column: Any) -> Any:
    """A column of labels as one array of integers or text, whatever form it was stored in (categories, views)."""
    import pyarrow as pa

    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        kind = pa.large_string()
    return pa.concat_arrays(column.cast(kind).chunks or [pa.array([], kind)])


def _one_type(place: str, column: str, labels: Sequence[Any]) -> list[Any]:
    """Labels of several files, all as int64 or all as text. Raises ConfigError for others."""
    import pyarrow as pa

    for array in labels:
        if array.null_count:
            raise ConfigError(f"SRC {place}: there are rows without a {column}; fix them")
        if not (pa.types.is_integer(array.type) or pa.types.is_large_string(array.type)):
            raise ConfigError(f"SRC {place}: its column {column} has the type {array.type}; make it integers or text")
    kinds = {"text" if pa.types.is_large_string(array.type) else "integers" for array in labels}
    if len(kinds) > 1:
        raise ConfigError(f"SRC {place}: its column {column} is text in one file, integers in another; make it one of these")
    return [array if pa.types.is_large_string(array.type) else array.cast(pa.int64()) for array in labels]
