"""Shards as somebody may send them: tar, index and manifest of any content, with checksums and fingerprint that fit."""

from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np

from pipeline.data.manifest import Manifest, Shard, dump_manifest
from pipeline.data.shard_index import ROW, dump_index, index_name
from tests.support.tars import write_tar


def write_shards(folder: Path, images: list[tuple[str, bytes]], **changed: Any) -> Path:
    """Write one shard of `images`, (name, data), each of class 0, with its index and manifest.

    `changed`: `rows`, a function of the index's rows that returns others; or fields of the manifest.
    """
    data = write_tar(folder / "0.tar", images).read_bytes()
    rows, place = [], 0
    for _, image in images:
        rows.append((place // 512 + 1, len(image), google_crc32c.value(image), 0))
        place += 512 + len(image) + -len(image) % 512
    change = changed.pop("rows", lambda rows: rows)
    index = dump_index(change(np.array(rows, ROW)), len(data))
    (folder / index_name("0.tar")).write_bytes(index)
    shard = Shard("0.tar", len(rows), len(data), google_crc32c.value(data), google_crc32c.value(index))
    fields = {"shards": (shard,), "classes": ("a",), "class_counts": (len(rows),), "resolution": 16, "channels": 3} | changed
    (folder / "manifest.json").write_bytes(dump_manifest(Manifest(**fields)))
    return folder
