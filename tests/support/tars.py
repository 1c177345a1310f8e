"""Tars of somebody's, and what indexing makes of them."""

import io
import tarfile
from pathlib import Path
from typing import Any

from PIL import Image

from pipeline.data.manifest import load_manifest
from pipeline.data.shard_index import load_index
from pipeline.packing.indexer import index_shards
from pipeline.packing.sample_rules import Rules
from pipeline.packing.tar_listing import find_shards
from tests.support.packing import quiet


def picture_of(label: int, width: int = 16, height: int = 16, form: str = "PNG", mode: str = "RGB") -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (width, height), (40 * label, 100, 255 - 40 * label)).convert(mode).save(out, form)
    return out.getvalue()


def write_tar(path: Path, files: list[tuple[str, bytes]], form: int = tarfile.PAX_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=form) as tar:
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def index_tars(uri: Path | str, out: Path | str | None = None, **rules: Any) -> Any:
    """The manifest and the report."""
    tars = find_shards(str(uri))
    return index_shards(tars, str(out or tars.folder), Rules(**rules), 2, quiet)


def labels_of(uri: Path) -> list[int]:
    manifest = load_manifest(str(uri))
    return [int(label) for shard in manifest.shards for label in load_index(str(uri), shard)["label"]]


GOOD = [("a.cls", b"1"), ("a.png", picture_of(1))]
