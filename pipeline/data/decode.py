"""From an encoded image to pixels of the size that training wants: upright, grey or RGB, cropped and resampled.

Packing, indexing and training ask this module, and only this module, whether an image is good. Pixels decide: simplejpeg
decodes a JPEG strictly, Pillow decodes what simplejpeg does not know and every other format. Metadata never make an image
bad. JPEGs of the right size, nearly all of a packed set, are decoded straight into the batch. Both decoders release the
interpreter lock.
"""

import contextlib
import logging
import threading
import warnings
from dataclasses import dataclass
from typing import Literal

import numpy as np
import simplejpeg
from PIL import Image, ImageOps, UnidentifiedImageError

from pipeline.images.floats import mirror
from pipeline.images.jpeg import MAX_PIXELS, START, Pixels, UndecodableError, check_size, decode_jpeg, jpeg_fault
from pipeline.images.metadata import without_metadata
from pipeline.images.pillow import SHARDS, open_image

__all__ = [
    "MAX_PIXELS",
    "Filter",
    "Pixels",
    "Stored",
    "UndecodableError",
    "cropped",
    "decode_into",
    "fitted",
    "looked_at",
    "opened",
]

Filter = Literal["lanczos", "bicubic", "box"]

_ORIENTATION = 0x0112  # in EXIF
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What to do with an image of that orientation; those of another stand upright."""

_ROWS_AT_A_TIME = 1 << 20  # pixels
# `MAX_PIXELS` decides on bombs; all the others are on metadata, and name no file.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
logging.getLogger("PIL").setLevel(logging.CRITICAL)


class _Own(threading.local):
    """What each thread keeps."""

    pixels: Pixels = np.empty((0, 0, 0), np.uint8)
    """The last picture before it was cropped: fresh pages would cost a twentieth of decoding."""
    start = b"\0"
    """The last JPEG up to its scan. Those that one program has packed all begin with the same bytes."""
    size = (0, 0)
    """Its height and width; (0, 0) if Pillow has to decode it."""


_own = _Own()


def decode_into(data: bytes, out: Pixels, crop: int | None = None, mirrored: bool = False) -> None:
    """Decode `data` into `out`, uint8 [R, R, C] (C = 1 grey or 3 RGB): `upright`, `cropped`, `fitted`, and mirrored if asked.

    Raises UndecodableError.
    """
    side, _, channels = out.shape
    try:
        height, width = _jpeg_size(data)
        mode = "GRAY" if channels == 1 else "RGB"
        if (height, width) == (side, side) and crop in (None, side):
            simplejpeg.decode_jpeg(data, mode, buffer=out)
            if mirrored:
                mirror(out, out)
            return
        if crop == side and side <= min(height, width):
            check_size(width, height, channels, len(data))
            if _own.pixels.shape != (height, width, channels):
                _own.pixels = np.empty((height, width, channels), np.uint8)
            simplejpeg.decode_jpeg(data, mode, buffer=_own.pixels)
            top, left = (height - side) // 2, (width - side) // 2
            centre = _own.pixels[top : top + side, left : left + side]
            if mirrored:
                mirror(centre, out)
            else:
                out[...] = centre
            return
    except Exception:  # simplejpeg's: `upright` says why, or finds that the picture is whole all the same
        pass
    image = cropped(upright(data), crop)
    mode = "L" if channels == 1 else "RGB"
    image = fitted(image if image.mode == mode else image.convert(mode), side)
    out[...] = np.asarray(image).reshape(out.shape)
    if mirrored:
        mirror(out, out)


def _jpeg_size(data: bytes) -> tuple[int, int]:
    """Height and width of a JPEG that simplejpeg decodes as Pillow would, else (0, 0). Raises ValueError."""
    if data.startswith(_own.start):
        return _own.size
    if data[:2] != b"\xff\xd8":
        return 0, 0
    place, turned = 2, False
    while data[place : place + 1] == b"\xff" and (marker := data[place + 1 : place + 2]) != b"\xda":
        turned = turned or (marker == b"\xe1" and data[place + 4 : place + 8] in (b"Exif", b"http"))  # XMP may turn it, too
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


def opened(data: bytes, formats: tuple[str, ...] = SHARDS) -> tuple[Image.Image, Stored]:
    """The picture as a person sees it, in mode L or RGB: turned as its EXIF says, on white where it is transparent.

    Of an animation it is the first frame. Pixels of 16 bits lose their lower 8 (Pillow would cut them off at 255).
    Raises UndecodableError, also for one in none of `formats` and for one too large to decode (`check_size`).
    """
    jpeg = decode_jpeg(data) if data.startswith(START) else None
    if jpeg and jpeg.pixels is not None:
        image = Image.fromarray(jpeg.pixels.squeeze(2) if jpeg.grey else jpeg.pixels)
        form, orientation = _header(data)
    else:
        image, form, orientation = _by_pillow(jpeg.data if jpeg else data, formats)
    stored = Stored(form, image.mode, image.size, orientation in _UPRIGHT)
    try:
        if stored.turned:
            image = image.transpose(_UPRIGHT[orientation])
        return _grey_or_rgb(image), stored
    except UndecodableError:
        raise
    except Exception as error:  # of a palette or a transparency that do not fit the pixels
        raise UndecodableError(jpeg_fault(error)) from None


def looked_at(data: bytes) -> tuple[tuple[int, int], bool]:
    """Judge an image as `opened` does; returns ((width, height), whether it is grey), (0, 0) where EXIF turns it.

    The whole image is decoded: a header says nothing about pixels that are missing, and training would refuse what passed
    here. Of a JPEG only the coefficients are read, which takes half the time. A core looks at 6,700 JPEGs of 256 pixels a
    second (165 MB/s) or 2,200 of 500 x 375; at 580 PNGs or 650 WebPs of 256 pixels. ImageNet takes 15 minutes of one core.
    Raises UndecodableError.
    """
    if data.startswith(START) and (jpeg := decode_jpeg(data, min_height=1, min_width=1)).pixels is not None:
        return ((0, 0) if _header(data)[1] in _UPRIGHT else jpeg.size), jpeg.grey
    image, stored = opened(data)
    return ((0, 0) if stored.turned else stored.size), image.mode == "L"


def _by_pillow(data: bytes, formats: tuple[str, ...]) -> tuple[Image.Image, str, int]:
    """(the picture as it is stored, Pillow's name of its format, its orientation). Raises UndecodableError."""
    try:
        with open_image(data, formats) as file:
            file.load()
            return file, file.format or "", _orientation(file)
    except UndecodableError:
        raise
    except Exception as error:  # Pillow's decoders raise whatever their format's parser meets
        if (bare := without_metadata(data)) != data:
            with contextlib.suppress(UndecodableError):
                return _by_pillow(bare, formats)
        if isinstance(error, UnidentifiedImageError):
            raise UndecodableError(f"it is in no format that is read here: {', '.join(formats)}") from None
        raise UndecodableError(jpeg_fault(error)) from None


def _header(data: bytes) -> tuple[str, int]:
    """Pillow's name of a JPEG's format (there is MPO as well), and its orientation."""
    try:
        with open_image(data, ("JPEG",)) as file:
            return file.format or "", _orientation(file)
    except Exception:  # of metadata: its pixels have been decoded
        return "JPEG", 1


def _orientation(file: Image.Image) -> int:
    """1 to 8; 1 where EXIF and XMP do not say it, or cannot be read."""
    try:
        orientation = file.getexif().get(_ORIENTATION)
    except Exception:
        return 1
    return orientation if orientation in _UPRIGHT else 1


def _grey_or_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("LA", "PA", "RGBA") or (image.mode in ("P", "RGB") and "transparency" in image.info):
        return _on_white(image)
    if image.mode in ("L", "RGB"):
        return image
    if image.mode in ("1", "P", "CMYK", "YCbCr"):
        return image.convert("L" if image.mode == "1" else "RGB")
    raise UndecodableError(f"its pixels are of type {image.mode}, not 8-bit grey or RGB")


def _on_white(image: Image.Image) -> Image.Image:
    """Under transparent pixels lies whatever the drawing program left there: show them on white.

    Some rows at a time, as copies of a whole picture would take four times its memory.
    """
    picture, rows = Image.new("RGB", image.size), max(1, _ROWS_AT_A_TIME // image.width)
    for top in range(0, image.height, rows):
        box = (0, top, image.width, min(top + rows, image.height))
        part = image.crop(box).convert("RGBA")
        picture.paste(Image.alpha_composite(Image.new("RGBA", part.size, "white"), part).convert("RGB"), box)
    return picture


def cropped(image: Image.Image, crop: int | None) -> Image.Image:
    """The centred square of `crop` pixels. Raises UndecodableError if the image is smaller."""
    if crop is None or image.size == (crop, crop):
        return image
    if crop > min(image.size):
        side = min(image.size)
        reason = f"it has {image.width} x {image.height} pixels, and data.crop={crop} asks for more"
        raise UndecodableError(reason, f"set data.crop={side}")
    left, top = (image.width - crop) // 2, (image.height - crop) // 2
    return image.crop((left, top, left + crop, top + crop))


def fitted(image: Image.Image, side: int, resample: Filter = "lanczos") -> Image.Image:
    """The largest centred square, resampled to side x side."""
    return image if image.size == (side, side) else ImageOps.fit(image, (side, side), Image.Resampling[resample.upper()])
