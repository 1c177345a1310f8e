"""Pictures as files."""

import io

import numpy as np
import numpy.typing as npt
from PIL import Image


def png(pixels: npt.NDArray[np.uint8]) -> bytes:
    """The PNG file of an image, uint8 [H, W, C] with 1 (grey) or 3 (colour) channels. Raises ValueError for another."""
    return _encoded(pixels, "PNG")


def webp(pixels: npt.NDArray[np.uint8]) -> bytes:
    """The same as WebP, without loss."""
    return _encoded(pixels, "WEBP", lossless=True)


def _encoded(pixels: npt.NDArray[np.uint8], form: str, **options: bool) -> bytes:
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] not in (1, 3):
        raise ValueError(f"an image must be uint8 [H, W, 1 or 3], got {pixels.dtype} {list(pixels.shape)}")
    file = io.BytesIO()
    Image.fromarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels).save(file, form, **options)
    return file.getvalue()


ENCODERS = {"png": png, "webp": webp}
"""By the end of a file's name."""
