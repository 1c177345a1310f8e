"""From an encoded image to pixels of the size that training wants: upright, grey or RGB, cropped and resampled.

JPEGs of the right size, nearly all of a packed set, are decoded by simplejpeg straight into the batch; everything else
goes through Pillow. Both release the interpreter lock.
"""

import io
import threading
import warnings
from dataclasses import dataclass
from typing import Literal

import numpy as np
import simplejpeg
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

Pixels = NDArray[np.uint8]
Filter = Literal["lanczos", "bicubic", "box"]

MAX_PIXELS = 100_000_000
"""A larger image is refused before it is decoded: a few kilobytes can claim gigabytes."""

_ORIENTATION = 0x0112  # in EXIF

warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # `MAX_PIXELS` decides


class UndecodableError(ValueError):
    """These bytes are no image that can be used; the message says why."""


class _Own(threading.local):
    """What each thread keeps."""

    pixels: Pixels = np.empty((0, 0, 0), np.uint8)
    """The last picture before it was cropped: fresh pages would cost a twentieth of decoding."""
    start = b"\0"
    """The last JPEG up to its scan. Those that one program has packed all begin with the same bytes."""
    size = (0, 0)
    """Its height and width; (0, 0) if Pillow has to decode it."""


_own = _Own()


def decode_into(data: bytes, out: Pixels, crop: int | None = None, mirror: bool = False) -> None:
    """Decode `data` into `out`, uint8 [R, R, C] (C = 1 grey or 3 RGB): `upright`, `cropped`, `fitted`, and mirrored if asked.

    Raises UndecodableError.
    """
    side, _, channels = out.shape
    try:
        height, width = _jpeg_size(data)
        mode = "GRAY" if channels == 1 else "RGB"
        if (height, width) == (side, side) and crop in (None, side):
            simplejpeg.decode_jpeg(data, mode, buffer=out)
            if mirror:
                _mirror(out, out)
            return
        if crop == side and side <= min(height, width) and height * width <= MAX_PIXELS:
            if _own.pixels.shape != (height, width, channels):
                _own.pixels = np.empty((height, width, channels), np.uint8)
            simplejpeg.decode_jpeg(data, mode, buffer=_own.pixels)
            top, left = (height - side) // 2, (width - side) // 2
            centre = _own.pixels[top : top + side, left : left + side]
            if mirror:
                _mirror(centre, out)
            else:
                out[...] = centre
            return
    except ValueError as error:
        raise UndecodableError(_first_line(error)) from None
    image = cropped(upright(data), crop)
    mode = "L" if channels == 1 else "RGB"
    image = fitted(image if image.mode == mode else image.convert(mode), side)
    out[...] = np.asarray(image).reshape(out.shape)
    if mirror:
        _mirror(out, out)


def _mirror(pixels: Pixels, out: Pixels) -> None:
    torch.from_numpy(out).copy_(torch.from_numpy(pixels).flip(1))  # NumPy takes eight times as long


def _jpeg_size(data: bytes) -> tuple[int, int]:
    """Height and width of a JPEG that simplejpeg decodes as Pillow would, else (0, 0). Raises ValueError."""
    if data.startswith(_own.start):
        return _own.size
    if data[:2] != b"\xff\xd8":
        return 0, 0
    place, turned = 2, False
    while data[place : place + 1] == b"\xff" and (marker := data[place + 1 : place + 2]) != b"\xda":
        turned = turned or (marker == b"\xe1" and data[place + 4 : place + 10] == b"Exif\0\0")
        place += 2 + int.from_bytes(data[place + 2 : place + 4])
    height, width, space, _ = simplejpeg.decode_jpeg_header(data)
    size = (height, width) if space in ("YCbCr", "Gray") and not turned else (0, 0)
    if data[place : place + 2] == b"\xff\xda":
        _own.start, _own.size = data[: place + 2], size
    return size


@dataclass(frozen=True)
class Stored:
    """What a picture's file is."""

    format: str
    """Pillow's name: JPEG, PNG, WEBP, ..."""
    mode: str
    size: tuple[int, int]
    """Width and height, pixels, before it was turned."""
    turned: bool
    """Whether it had to be turned to stand upright."""


def upright(data: bytes) -> Image.Image:
    """The picture of `opened`."""
    return opened(data)[0]


def opened(data: bytes) -> tuple[Image.Image, Stored]:
    """The picture as a person sees it, in mode L or RGB: turned as its EXIF says, on white where it is transparent.

    Pixels of 16 bits lose their lower 8 (Pillow would cut them off at 255). Raises UndecodableError, also for more than
    `MAX_PIXELS`.
    """
    try:
        with Image.open(io.BytesIO(data)) as file:
            if file.width * file.height > MAX_PIXELS:
                raise ValueError(f"{file.width} x {file.height} pixels are more than {MAX_PIXELS:,}")
            file.load()
            turned = file.getexif().get(_ORIENTATION, 1) != 1
            stored = Stored(file.format or "", file.mode, file.size, turned)
            image: Image.Image = file
            if turned:
                ImageOps.exif_transpose(image, in_place=True)  # otherwise a copy, and copies hold the interpreter lock
    except UnidentifiedImageError:
        raise UndecodableError("it is in no format that Pillow knows") from None
    except Exception as error:  # Pillow's decoders raise whatever their format's parser meets
        raise UndecodableError(_first_line(error)) from None
    return _grey_or_rgb(image), stored


def _grey_or_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("LA", "PA", "RGBA") or (image.mode in ("P", "RGB") and "transparency" in image.info):
        # Under transparent pixels lies whatever the drawing program left there: show them on white.
        picture = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
    if image.mode in ("L", "RGB"):
        return image
    if image.mode in ("1", "P", "CMYK", "YCbCr"):
        return image.convert("L" if image.mode == "1" else "RGB")
    raise UndecodableError(f"its pixels are of type {image.mode}, not 8-bit grey or RGB")


def cropped(image: Image.Image, crop: int | None) -> Image.Image:
    """The centred square of `crop` pixels. Raises UndecodableError if the image is smaller."""
    if crop is None or image.size == (crop, crop):
        return image
    if crop > min(image.size):
        raise UndecodableError(f"it has {image.width} x {image.height} pixels, and data.crop={crop} asks for more")
    left, top = (image.width - crop) // 2, (image.height - crop) // 2
    return image.crop((left, top, left + crop, top + crop))


def fitted(image: Image.Image, side: int, resample: Filter = "lanczos") -> Image.Image:
    """The largest centred square, resampled to side x side."""
    return image if image.size == (side, side) else ImageOps.fit(image, (side, side), Image.Resampling[resample.upper()])


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
