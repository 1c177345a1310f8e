"""Smooth pictures, in any format of images."""

import io
from typing import Any

import numpy as np
from PIL import Image

RNG = np.random.default_rng(0)


def smooth_picture(width: int, height: int, mode: str = "RGB") -> Image.Image:
    """Smooth, so that a JPEG of it is close to it."""
    rough = RNG.integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(rough).resize((width, height), Image.Resampling.BICUBIC).convert(mode)


def encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()
