"""What tests of packing share: where it stops, and what it has written."""

from pathlib import Path

import pytest
import webdataset
from PIL import Image

from pipeline.packing.pack import PackConfig, pack
from pipeline.packing.sources.detect import Source


def quiet(*_: object) -> None:
    """Progress that nobody watches."""


def samples(folder: Path) -> list[dict[str, bytes]]:
    tars = [str(path) for path in sorted(folder.glob("*.tar"))]
    return list(webdataset.WebDataset(tars, shardshuffle=False))


def save(path: Path, image: Image.Image, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)  # type: ignore[arg-type]
    return path


CONFIG = PackConfig(resolution=32, shard_bytes=100_000)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def without_report(folder: Path) -> dict[str, bytes]:
    """Its bytes tell how long the pack took."""
    return {name: data for name, data in contents(folder).items() if name != "report.json"}


SMALL = PackConfig(resolution=32, shard_bytes=20_000)


class Stopped(Exception):
    pass


def stop_after(source: Source, uri: Path, images: int, config: PackConfig = SMALL) -> None:
    """An end that leaves no time to tidy up: not one of our errors."""
    done = 0

    def progress(more: int) -> None:
        nonlocal done
        done += more
        if done >= images:
            raise Stopped

    with pytest.raises(Stopped):
        pack(source, str(uri), config, progress)
