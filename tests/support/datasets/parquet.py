"""Parquet files of images, as `datasets` writes them and as others do."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

CLASSES = ["bird", "cat", "dog"]


def png(seed: int) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (16, 16, 3), np.uint8)).save(out, "PNG")
    return out.getvalue()


def huggingface(features: dict[str, Any]) -> dict[str, str]:
    return {"huggingface": json.dumps({"info": {"features": features}})}


FEATURES = {"image": {"_type": "Image"}, "label": {"names": CLASSES, "_type": "ClassLabel"}}


def write_parquet(
    file: Path,
    images: list[bytes],
    labels: Any,
    *,
    struct: bool = True,
    features: Any = FEATURES,
    columns: Any = ("image", "label"),
) -> None:
    """A file of 4 rows per row group, as `datasets` writes it (`struct`) or with a binary column."""
    rows = [{"bytes": image, "path": None} for image in images] if struct else images
    table = pa.table({columns[0]: rows, columns[1]: labels})
    if features:
        table = table.replace_schema_metadata(huggingface(features))
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, file, row_group_size=4)
