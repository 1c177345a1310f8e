"""Pictures as files; and the only door to Pillow's parsers, which are named and never chosen by what a file holds.

Pillow would hand PostScript to Ghostscript, and has parsers for forty other formats that nobody packs.
"""

import io

import numpy as np
import numpy.typing as npt
from PIL import Image

from pipeline.images.jpeg import check_size

SHARDS = ("JPEG", "PNG", "WEBP", "AVIF", "GIF")
"""Formats, by Pillow's names, of images in shards: those that packing keeps, and those of tars that others wrote."""
SOURCES = (*SHARDS, "BMP", "DIB", "PPM", "TIFF", "TGA", "QOI", "JPEG2000")
"""Formats of the files that are packed."""
DRAWN = ("PNG",)
"""Formats of what a model draws: golden samples, answers of servers, grids."""

_COPIES = {"WEBP": 4, "AVIF": 3, "JPEG2000": 5}  # of all pixels, that the decoders of these formats make


def open_image(data: bytes, formats: tuple[str, ...]) -> Image.Image:
    """Return the image of a file in one of `formats`, not yet decoded.

    Raises UndecodableError if it would take too much memory, and whatever Pillow's parsers raise.
    """
    image = Image.open(io.BytesIO(data), formats=formats)
    narrow = image.mode in ("L", "1", "P") and "transparency" not in image.info
    copies = _COPIES.get(image.format or "", 1) + (image.mode not in ("L", "RGB"))
    check_size(*image.size, copies * (2 if narrow else 4), len(data))
    return image


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
