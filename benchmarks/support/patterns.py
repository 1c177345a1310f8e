"""Make small shards of synthetic patterns that differ by class, with `biggan shard`."""

from pathlib import Path

import numpy as np
from PIL import Image

from jobs import cli


def pack_patterns(folder: Path, classes: int, images: int, resolution: int = 32) -> str:
    """Pack `images` RGB images in each of `classes` classes below `folder`; return the URI of the packed split."""
    rng = np.random.default_rng(0)
    for label in range(classes):
        (folder / "images" / f"class{label}").mkdir(parents=True)
        for i in range(images):
            pixels = rng.integers(0, 80, (resolution, resolution, 3), np.uint8)
            pixels[label::classes, :, i % 3] += 150
            Image.fromarray(pixels).save(folder / "images" / f"class{label}" / f"{i:04d}.png")
    if cli.main(["shard", str(folder / "images"), str(folder / "shards"), "--resolution", str(resolution)]):
        raise SystemExit("benchmarks: `biggan shard` failed")
    return str(folder / "shards")
