"""Folders and zips with files of any names, and what a source finds in them."""

import zipfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from pipeline.packing.sources.detect import Source


def put(root: Path, paths: Iterable[str]) -> Path:
    """Files that hold their own path; opening a source reads no image."""
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(path)
    return root


def zipped(file: Path, paths: Iterable[str]) -> Path:
    with zipfile.ZipFile(file, "w") as archive:
        for path in paths:
            archive.writestr(path, path)
    return file


def counts(sources: list[Source]) -> dict[str, dict[str, int]]:
    return {source.split: dict(Counter(source.classes[label] for label in source.labels.tolist())) for source in sources}
