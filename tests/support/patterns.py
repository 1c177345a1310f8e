"""Folders of pictures that a small network learns at once."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

PATTERNS = ("bars", "blob", "checks", "stripes")


def pattern(kind: int, rng: np.random.Generator, size: int = 32) -> NDArray[np.uint8]:
    """A noisy picture of one of the `PATTERNS`, uint8 [size, size]: a class that a small network learns at once."""
    y, x = np.mgrid[:size, :size] / size
    shift = rng.uniform(0, 0.25)
    picture = (
        np.sin(2 * np.pi * (3 * x + shift)),
        2 * np.exp(-((x - 0.5 - shift / 2) ** 2 + (y - 0.5) ** 2) / 0.05) - 1,
        np.sin(2 * np.pi * (2 * x + shift)) * np.sin(2 * np.pi * (2 * y + shift)),
        np.sin(2 * np.pi * (3 * y + shift)),
    )[kind]
    return np.clip(128 + 100 * picture + rng.normal(0, 8, (size, size)), 0, 255).astype(np.uint8)


def write_tree(root: Path, images: int, *, grey: bool, size: int = 32) -> Path:
    """A folder of 4 class folders with `images` PNG files each."""
    rng = np.random.default_rng(0)
    tints = np.array([[255, 120, 60], [80, 255, 80], [60, 120, 255], [255, 255, 80]]) / 255
    for kind, name in enumerate(PATTERNS):
        (root / name).mkdir(parents=True)
        for i in range(images):
            pixels = pattern(kind, rng, size)
            if not grey:
                pixels = (pixels[..., None] * tints[kind]).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{i:04d}.png", compress_level=1)
    return root
