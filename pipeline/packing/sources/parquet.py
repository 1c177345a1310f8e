"""Parquet files with image files in a column, as Hugging Face's `datasets` writes them.

The image column is a struct with `bytes`, or binary. Labels are integers, named by the ClassLabel in the schema's
metadata if there is one, or text. Splits are named by folders or files: `CONFIG/train/0000.parquet`,
`CONFIG/train-00000-of-00001.parquet`.
"""

import hashlib
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import ConfigError, DataError
from pipeline.packing.sources.base import BLOCK_BYTES, BlockCache, Blocks, Names, Source, refuse_bomb, same_classes
from pipeline.packing.sources.files import Files
from pipeline.packing.sources.layout import split_name, split_order, split_within
from pipeline.packing.sources.parquet_labels import features, number, read_labels
from pipeline.packing.sources.parquet_rows import Group, load_group
from pipeline.untrusted import parsing
from pipeline.wording import command, plural

_FREE_ROWS = 1 << 20  # more than these need a file of as many bytes
_IMAGE_NAMES, _LABEL_NAMES = ("image", "img", "jpg", "png"), ("label", "labels", "fine_label", "cls", "class")


def is_table(name: str) -> bool:
    """Tell whether this is the name of a parquet file."""
    return name.lower().endswith(".parquet")


def find(root: Path, files: Files, beside_images: bool) -> list[str]:
    """Return the parquet files below `root` that hold images; those without are tables about images.

    `beside_images`: only those with labels, too, as the folder has images of its own. Damaged files are left out then.
    Raises ConfigError where pyarrow is missing, and nothing else can be packed.
    """
    import importlib

    tables = [name for name in files.others if is_table(name)]
    if not tables:
        return []
    try:
        importlib.import_module("pyarrow.parquet")
    except ImportError:
        if beside_images:
            return []
        raise _no_pyarrow(root) from None
    return [name for name in tables if _has_images(root / name, beside_images)]


def _no_pyarrow(place: object) -> ConfigError:
    return ConfigError(f"SRC {place} is parquet: `pip install 'biggan-pipeline[parquet]'` to read it")


def _has_images(path: Path, with_labels: bool) -> bool:
    import pyarrow.parquet as pq

    try:
        with parsing(str(path)):
            image, label = _columns(pq.read_schema(path))
    except DataError:
        return not with_labels  # opening it will say what is wrong
    return image is not None and (label is not None or not with_labels)


def open_parquet(place: str, paths: list[Path], split: str | None = None, label: str | None = None) -> list[Source]:
    """Return the splits in these files, which lie below `place`; only `split`, if one is named.

    Raises ConfigError where columns are missing, pyarrow is, or files are of several configurations; DataError for damaged
    files.
    """
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError:
        raise _no_pyarrow(place) from None
    parts = {path: _part(place, path) for path in paths}
    known = sorted({name for _, name in parts.values()}, key=split_order)
    if split is not None:
        wanted = next((name for name in (split, split_name(split)) if name and name in known), None)
        if wanted is None:
            raise ConfigError(f"--split {split}: {place} has {', '.join(filter(None, known)) or 'no splits'}")
        known = [wanted]
    chosen = {path: part for path, part in parts.items() if part[1] in known}
    configs = sorted({config for config, _ in chosen.values()})
    if len(configs) > 1:
        names = ", ".join(config or "the folder itself" for config in configs)
        raise ConfigError(
            f"SRC {place} has parquet files in several folders ({names}), each one data set: "
            f"name one, as in {command('shard', f'{place}/{configs[-1]}', 'DST')}"
        )
    if len(known) > 1 and "" in known:
        lone, other = (next(path for path, part in chosen.items() if bool(part[1]) == named) for named in (False, True))
        name = shlex.quote(parts[other][1])
        raise ConfigError(
            f"SRC {place}: {other.name} is the split {name}, {lone.name} is in none: add --split {name}, or move one away"
        )
    sources = [
        _split(name, place, [path for path in paths if chosen.get(path, ("", None))[1] == name], label) for name in known
    ]
    outside = tuple((_relative(place, path).as_posix(), "file outside the split") for path in paths if path not in chosen)
    sources = [replace(source, passed=outside) for source in sources]
    numbered = all(source.classes == tuple(map(str, range(len(source.classes)))) for source in sources)
    sources = same_classes(place, sources, numbered)
    for source in sources[1:]:
        if source.classes != sources[0].classes:
            raise ConfigError(
                f"SRC {place}: {source.split} has other classes than {sources[0].split}, or in another order: "
                f"give both the same, or add --split {shlex.quote(source.split)}"
            )
    return sources


def _relative(place: str, path: Path) -> Path:
    return Path(path.name) if path == Path(place) else path.relative_to(place)


def _part(place: str, path: Path) -> tuple[str, str]:
    """(folder of the configuration, split) of a file; empty where there is none. Raises ConfigError for two splits."""
    *folders, name = _relative(place, path).parts
    by_name = split_within(name[: -len(".parquet")])
    by_folder = None
    if folders:
        by_folder = split_name(folders[-1]) or (None if by_name else split_within(folders[-1]))
    if by_name and by_folder and by_name != by_folder:
        raise ConfigError(f"SRC {place}: {path.name} in {folders[-1]} is the split {by_name} or {by_folder}: rename the file")
    return "/".join(folders[:-1] if by_folder else folders), by_folder or by_name or ""


def _split(split: str, place: str, paths: list[Path], chosen_label: str | None) -> Source:
    """All row groups of `paths` as one split."""
    import pyarrow.parquet as pq

    groups: list[Group] = []
    labels: list[Any] = []
    label: str | None = None
    seal = hashlib.sha256()
    for path in paths:
        with parsing(f"SRC {path} is damaged or no parquet", "get it again"):
            with pq.ParquetFile(path) as file:
                image, label = _needed(path, file.schema_arrow, chosen_label)
                found = [Group(path, number, image, file.metadata) for number in range(file.num_row_groups)]
                _refuse_claims(path, found)
                groups += found
                schema = file.schema_arrow
            if label is not None:
                labels.append(read_labels(path, label))
            seal.update(repr((path.name, path.stat().st_size, path.stat().st_mtime_ns)).encode())
    classes: tuple[str, ...] = ("all",)
    rows = [0] + [group.rows for group in groups]
    with parsing(f"SRC {place} is damaged", "get it again"):
        if label is None:
            numbers = np.zeros(sum(rows), np.int64)
        else:
            numbers, classes = number(place, split, labels, schema, label)
        if len(numbers) != sum(rows):
            raise ValueError(f"it has {len(numbers):,} labels and {sum(rows):,} rows")
    starts = np.cumsum(rows, dtype=np.int64)
    window = max(1, BLOCK_BYTES // max([1] + [group.bytes for group in groups]))

    def where(i: int) -> tuple[int, int]:
        block = int(np.searchsorted(starts, i, side="right")) - 1
        return block, i - int(starts[block])

    def name(i: int) -> str:
        block, row = where(i)
        return f"{groups[block].path}, row group {groups[block].number}, row {row}"

    cache = BlockCache(lambda block: load_group(groups[block]), 2 * window)

    def read(i: int) -> bytes:
        block, row = where(i)
        data = cache.get(block)[row]
        if data is None:
            raise DataError(f"{name(i)} has no bytes, at most a path: embed the images (`embed_external_files=True`)")
        return data

    return Source(
        split=split,
        classes=classes,
        names=Names(len(numbers), name),
        labels=numbers,
        read=read,
        fingerprint=seal.hexdigest(),
        blocks=Blocks(starts, window),
        layout=f"{plural(len(paths), 'parquet file')}, " + (f"labels in the column {label}" if label else "one class"),
    )


def _refuse_claims(path: Path, groups: list[Group]) -> None:
    """Raise DataError where the footer claims so many rows or bytes that the file cannot hold them."""
    size, rows = path.stat().st_size, sum(group.rows for group in groups)
    if min([0, *(group.rows for group in groups)]) < 0 or rows > max(_FREE_ROWS, size):
        raise DataError(f"SRC {path} claims to hold {rows:,} rows in {size:,} bytes: get it again")
    refuse_bomb(str(path), size, sum(group.bytes for group in groups))


def _needed(path: Path, schema: Any, chosen_label: str | None) -> tuple[str, str | None]:
    """Names of the image column and the label column (None for --label none). Raises ConfigError where one is missing."""
    image, label = _columns(schema)
    if chosen_label == "none":
        label = None
    elif label is None and image is not None:
        raise ConfigError(
            f"SRC {path} has the columns {', '.join(schema.names)}: rename that of the labels to label, "
            "or add --label none for one class"
        )
    if image is None:
        raise ConfigError(f"SRC {path} has the columns {', '.join(schema.names)}: rename that of the image files to image")
    return image, label


def _columns(schema: Any) -> tuple[str | None, str | None]:
    """Names of the image column and the label column, None where there is none that is sure."""
    import pyarrow as pa

    def holds_bytes(kind: Any) -> bool:
        if pa.types.is_struct(kind):
            return any(part.name == "bytes" for part in kind)
        kinds = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view)
        return any(is_kind(kind.value_type if pa.types.is_dictionary(kind) else kind) for is_kind in kinds)

    noted = features(schema)
    images = [field.name for field in schema if holds_bytes(field.type)]
    labels = [name for name, feature in noted.items() if feature.get("_type") == "ClassLabel"]
    known = [name for name in _LABEL_NAMES if name in schema.names]
    image = next((name for name in _IMAGE_NAMES if name in images), images[0] if len(images) == 1 else None)
    return image, known[0] if known else labels[0] if len(labels) == 1 else None
