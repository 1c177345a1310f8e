"""The images of parquet row groups, of any size, in bounded memory.

A row group is kept in memory while its images are packed. A large one is streamed to a temporary file, once, since parquet
cannot be read from the middle of a row group.
"""

import os
import tempfile
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import DataError, StorageError
from pipeline.packing.sources.base import BLOCK_BYTES
from pipeline.untrusted import parsing

_BATCH_ROWS = 256  # that are decoded at a time, as one image may stand in all rows
_BATCH_BYTES = 16 << 20  # decoded at a time, of a large row group


@dataclass(frozen=True)
class Group:
    """One row group of one file."""

    path: Path
    number: int
    column: str
    """Of the images."""
    metadata: Any
    """The file's footer."""

    @property
    def bytes(self) -> int:
        """Uncompressed bytes of all columns."""
        return int(self.metadata.row_group(self.number).total_byte_size)

    @property
    def rows(self) -> int:
        """Rows in the group."""
        return int(self.metadata.row_group(self.number).num_rows)


class InMemory:
    """The images of one row group, as Arrow has them. Raises DataError where they are more than `most` bytes."""

    def __init__(self, columns: Iterator[Any], most: int, place: str) -> None:
        import pyarrow as pa

        kept: list[Any] = []
        found = 0
        for column in columns:
            kept.append(column)
            found += column.nbytes
            if found > most:
                raise DataError(f"{place} has images of {found:,} bytes, and its footer says fewer: get it again")
        self._column = pa.chunked_array(kept or [pa.array([], pa.binary())])

    def __getitem__(self, row: int) -> bytes | None:
        data = self._column[row].as_py()
        return None if data is None else bytes(data)


class OnDisk:
    """The images of one row group in a temporary file, which has no name and goes with this object."""

    def __init__(self, columns: Iterator[Any]) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115  lives as long as this object
        self._starts, self._lengths, at = array("q"), array("q"), 0
        for column in columns:
            data = column.to_pylist()
            self._lengths.extend(-1 if image is None else len(image) for image in data)
            for image in data:
                self._starts.append(at)
                at += len(image or b"")
            self._write(data)

    def _write(self, images: list[bytes | None]) -> None:
        try:
            self._file.writelines(image for image in images if image)
            self._file.flush()
        except OSError as error:
            raise StorageError(
                f"cannot write to the folder for temporary files, {tempfile.gettempdir()} ({error.strerror}): a large row "
                "group needs space for its images there; free some, or name another folder in the variable TMPDIR"
            ) from None

    def __getitem__(self, row: int) -> bytes | None:
        length = self._lengths[row]
        return None if length < 0 else os.pread(self._file.fileno(), length, self._starts[row])


def load_group(group: Group) -> InMemory | OnDisk:
    """Read one row group. Raises DataError where it is damaged, StorageError if the folder for temporary files is full."""
    if group.bytes <= BLOCK_BYTES:
        return InMemory(_columns(group, group.rows), BLOCK_BYTES + 2 * group.bytes, f"{group.path}, row group {group.number},")
    return OnDisk(_columns(group, max(1, group.rows * _BATCH_BYTES // group.bytes)))


def _columns(group: Group, rows: int) -> Iterator[Any]:
    """The images, `rows` at a time, as Arrow arrays of bytes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    # Without pre_buffer, or all of the row group would be read at once. What remains in memory is a page of the file.
    options = {"metadata": group.metadata, "pre_buffer": False, "buffer_size": 1 << 20}
    place = f"{group.path}, row group {group.number}, cannot be read"
    with parsing(place, "get it again"), pq.ParquetFile(group.path, **options) as file:
        for batch in file.iter_batches(max(1, min(rows, _BATCH_ROWS)), [group.number], [group.column], use_threads=False):
            images = batch.column(0)
            yield images.field("bytes") if pa.types.is_struct(images.type) else images
