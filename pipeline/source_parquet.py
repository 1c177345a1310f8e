"""Parquet files with image files in a column, as Hugging Face's `datasets` writes them.

The image column is a struct with `bytes`, or binary. Labels are integers, named by the ClassLabel in the schema's
metadata if there is one, or text. A row group is read at once and kept while its images are packed.
"""

import hashlib
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import ConfigError, DataError
from pipeline.source import BLOCK_BYTES, SPLITS, BlockCache, Blocks, Ints, Names, Source

_SPLIT = re.compile(rf"({'|'.join(SPLITS)})([-_.].*)?\.parquet")
_IMAGE_NAMES, _LABEL_NAMES = ("image", "img", "jpg", "png"), ("label", "labels", "fine_label", "cls", "class")


def find(folder: Path) -> list[Path]:
    """The parquet files in `folder`, or in its `data/`, where Hugging Face has them."""
    return sorted(folder.glob("*.parquet")) or sorted(folder.glob("data/*.parquet"))


def open_parquet(place: str, paths: list[Path]) -> list[Source]:
    """The splits in these files: `train-*.parquet`, `test-*.parquet`, ..., or one without a name.

    Raises ConfigError where columns are missing or pyarrow is, DataError for damaged files.
    """
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError:
        raise ConfigError(f"SRC {place} is parquet: `pip install 'biggan-pipeline[parquet]'` to read it") from None
    matches = {path: _SPLIT.fullmatch(path.name) for path in paths}
    if not all(matches.values()):  # shards of one set that happen to be called anything
        return [_split("", place, paths)]
    splits = {match[1] for match in matches.values() if match}
    sources = [
        _split(split, place, [path for path, match in matches.items() if match and match[1] == split])
        for split in sorted(splits, key=SPLITS.index)
    ]
    if all(source.classes == tuple(map(str, range(len(source.classes)))) for source in sources):
        classes = max((source.classes for source in sources), key=len)  # numbers without names: the longest list
        return [replace(source, classes=classes) for source in sources]
    for source in sources[1:]:
        if source.classes != sources[0].classes:
            raise ConfigError(
                f"SRC {place}: {source.split} has other classes than {sources[0].split}; "
                "give both the same, or move each into a folder of its own and pack that"
            )
    return sources


def _split(split: str, place: str, paths: list[Path]) -> Source:
    """All row groups of `paths` as one split."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    groups: list[tuple[Path, int]] = []
    rows, sizes, labels, footers = [0], [1], [], {}
    seal = hashlib.sha256()
    try:
        for path in paths:
            file = pq.ParquetFile(path)
            image, label = _columns(path, file.schema_arrow)
            labels.append(file.read([label]).column(0).combine_chunks())
            footers[path] = (file.metadata, image)
            for group in range(file.num_row_groups):
                groups.append((path, group))
                rows.append(file.metadata.row_group(group).num_rows)
                sizes.append(file.metadata.row_group(group).total_byte_size)
            seal.update(repr((path.name, path.stat().st_size, path.stat().st_mtime_ns)).encode())
        numbers, classes = _labels(place, split, pa.chunked_array(labels), file.schema_arrow, label)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"SRC {path} is damaged or no parquet ({str(error).splitlines()[0]}): get it again") from None
    starts = np.cumsum(rows, dtype=np.int64)
    window = max(1, BLOCK_BYTES // max(sizes))

    def load(block: int) -> Any:
        path, group = groups[block]
        metadata, column = footers[path]
        try:
            with pq.ParquetFile(path, metadata=metadata) as file:
                images = file.read_row_group(group, [column], use_threads=False).column(0).combine_chunks()
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{path}, row group {group}, cannot be read ({str(error).splitlines()[0]}): get it again") from None
        return images.field("bytes") if pa.types.is_struct(images.type) else images

    def where(i: int) -> tuple[int, int]:
        block = int(np.searchsorted(starts, i, side="right")) - 1
        return block, i - int(starts[block])

    def name(i: int) -> str:
        block, row = where(i)
        return f"{groups[block][0]}, row group {groups[block][1]}, row {row}"

    cache = BlockCache(load, 2 * window)

    def read(i: int) -> bytes:
        block, row = where(i)
        data = cache.get(block)[row].as_py()
        if data is None:
            raise DataError(f"{name(i)} has a path, but no bytes: embed the images (`embed_external_files=True`)")
        return bytes(data)

    return Source(split, classes, Names(len(numbers), name), numbers, read, seal.hexdigest(), blocks=Blocks(starts, window))


def _columns(path: Path, schema: Any) -> tuple[str, str]:
    """Names of the image column and the label column."""
    import pyarrow as pa

    def holds_bytes(kind: Any) -> bool:
        if pa.types.is_struct(kind):
            return any(part.name == "bytes" for part in kind)
        return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))

    features = _features(schema)
    images = [field.name for field in schema if holds_bytes(field.type)]
    labels = [name for name, feature in features.items() if feature.get("_type") == "ClassLabel"]
    known = [name for name in _LABEL_NAMES if name in schema.names]
    image = next((name for name in _IMAGE_NAMES if name in images), images[0] if len(images) == 1 else None)
    label = known[0] if known else labels[0] if len(labels) == 1 else None
    if image is None or label is None:
        raise ConfigError(
            f"SRC {path} has the columns {', '.join(schema.names)}: rename "
            f"{'that of the image files to image' if image is None else 'that of the labels to label'}"
        )
    return image, label


def _features(schema: Any) -> dict[str, Any]:
    """What Hugging Face notes on the columns."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, ValueError, TypeError):
        return {}
    return {name: feature for name, feature in features.items() if isinstance(feature, dict)}


def _labels(place: str, split: str, labels: Any, schema: Any, column: str) -> tuple[Ints, tuple[str, ...]]:
    """Labels [n] and class names."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if len(labels) == 0 or labels.null_count:
        raise ConfigError(f"SRC {place} {split}: {'no rows' if len(labels) == 0 else f'rows without a {column}'}; mend it")
    if pa.types.is_string(labels.type) or pa.types.is_large_string(labels.type):
        classes = tuple(sorted(pc.unique(labels).to_pylist()))
        return pc.index_in(labels, pa.array(classes, labels.type)).to_numpy().astype(np.int64), classes
    if not pa.types.is_integer(labels.type):
        raise ConfigError(f"SRC {place}: its column {column} has the type {labels.type}; make it integers or text")
    numbers = labels.to_numpy().astype(np.int64)
    names = _features(schema).get(column, {}).get("names")
    return numbers, tuple(map(str, names if names else range(int(numbers.max()) + 1)))
