"""From an encoded image to pixels of the size that training wants: upright, grey or RGB, cropped and resampled.

Packing, indexing and training ask this module, and only this module, whether an image is good. Pixels decide: simplejpeg
decodes a JPEG strictly, Pillow decodes what simplejpeg does not know and every other format. Metadata never make an image
bad. JPEGs of the right size, nearly all of a packed set, are decoded straight into the batch. Both decoders release the
interpreter lock.
"""

import contextlib
import io
import logging
import threading
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import simplejpeg
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from pipeline.jpeg import MAX_PIXELS, START, Pixels, UndecodableError, check_size, decode_jpeg, first_line

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

_PNG = b"\x89PNG\r\n\x1a\n"
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
    except Exception:  # simplejpeg's: `upright` says why, or finds that the picture is whole all the same
        pass
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


def opened(data: bytes) -> tuple[Image.Image, Stored]:
    """The picture as a person sees it, in mode L or RGB: turned as its EXIF says, on white where it is transparent.

    Of an animation it is the first frame. Pixels of 16 bits lose their lower 8 (Pillow would cut them off at 255).
    Raises UndecodableError, also for more than `MAX_PIXELS`.
    """
    jpeg = decode_jpeg(data) if data.startswith(START) else None
    if jpeg and jpeg.pixels is not None:
        image = Image.fromarray(jpeg.pixels.squeeze(2) if jpeg.grey else jpeg.pixels)
        form, orientation = _header(data)
    else:
        image, form, orientation = _by_pillow(jpeg.data if jpeg else data)
    stored = Stored(form, image.mode, image.size, orientation in _UPRIGHT)
    try:
        if stored.turned:
            image = image.transpose(_UPRIGHT[orientation])
        return _grey_or_rgb(image), stored
    except UndecodableError:
        raise
    except Exception as error:  # of a palette or a transparency that do not fit the pixels
        raise UndecodableError(first_line(error)) from None


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


def _by_pillow(data: bytes) -> tuple[Image.Image, str, int]:
    """(the picture as it is stored, Pillow's name of its format, its orientation). Raises UndecodableError."""
    try:
        with Image.open(io.BytesIO(data)) as file:
            check_size(*file.size)
            file.load()
            return file, file.format or "", _orientation(file)
    except UndecodableError:
        raise
    except Exception as error:  # Pillow's decoders raise whatever their format's parser meets
        if (bare := _pixels_only(data)) != data:
            with contextlib.suppress(UndecodableError):
                return _by_pillow(bare)
        known = not isinstance(error, UnidentifiedImageError)
        raise UndecodableError(first_line(error) if known else "it is in no format that Pillow knows") from None


def _header(data: bytes) -> tuple[str, int]:
    """Pillow's name of a JPEG's format (there is MPO as well), and its orientation."""
    try:
        with Image.open(io.BytesIO(data)) as file:
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


def _pixels_only(data: bytes) -> bytes:
    """A PNG, WebP or JPEG without its metadata, which Pillow refuses where they are damaged or large; others as they are."""
    if data.startswith(_PNG):
        return _PNG + b"".join(_png_pixels(data))
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        body = b"WEBP" + b"".join(_webp_pixels(data))
        return b"RIFF" + len(body).to_bytes(4, "little") + body
    if not data.startswith(START):
        return data
    kept, place = [START], 2
    while data[place : place + 1] == b"\xff" and (marker := data[place + 1 : place + 2]) != b"\xda":
        end = place + 2 + int.from_bytes(data[place + 2 : place + 4])
        if marker == b"\xee" or not b"\xe0" <= marker <= b"\xfe":  # APP14 tells the colour space
            kept.append(data[place:end])
        place = end
    return b"".join([*kept, data[place:]])


def _png_pixels(data: bytes) -> Iterator[bytes]:
    """The chunks of a PNG that say something of its pixels, and its EXIF if that is whole."""
    place = len(_PNG)
    while kind := data[place + 4 : place + 8]:
        end = place + 12 + int.from_bytes(data[place : place + 4])
        whole = int.from_bytes(data[end - 4 : end]) == zlib.crc32(data[place + 4 : end - 4])
        if kind in (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND") or (kind == b"eXIf" and whole):
            yield data[place:end]
        place = end


def _webp_pixels(data: bytes) -> Iterator[bytes]:
    """The chunks of a WebP that say something of its pixels; its header no longer promises others."""
    place = 12
    while kind := data[place : place + 4]:
        size = int.from_bytes(data[place + 4 : place + 8], "little")
        part = data[place : place + 8 + size + size % 2]
        if kind == b"VP8X":
            part = part[:8] + bytes(flags & ~0b101100 for flags in part[8:9]) + part[9:]
        if kind in (b"VP8X", b"VP8 ", b"VP8L", b"ALPH", b"ANIM", b"ANMF"):
            yield part
        place += 8 + size + size % 2


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
        side = min(image.size)
        reason = f"it has {image.width} x {image.height} pixels, and data.crop={crop} asks for more"
        raise UndecodableError(reason, f"set data.crop={side}")
    left, top = (image.width - crop) // 2, (image.height - crop) // 2
    return image.crop((left, top, left + crop, top + crop))


def fitted(image: Image.Image, side: int, resample: Filter = "lanczos") -> Image.Image:
    """The largest centred square, resampled to side x side."""
    return image if image.size == (side, side) else ImageOps.fit(image, (side, side), Image.Resampling[resample.upper()])
