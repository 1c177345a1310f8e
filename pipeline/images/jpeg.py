"""Strict decoding of JPEGs: what is missing of a picture is an error, what surplus bytes surround it is not."""

import re
from dataclasses import dataclass

import numpy as np
import simplejpeg
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]

MAX_PIXELS = 100_000_000
"""A larger image is refused before it is decoded: a few kilobytes can claim gigabytes."""

MAX_BYTES = 1 << 30
"""The same of the memory that decoding takes, with all copies that it makes."""

_FREE_BYTES = 128 << 20  # more is given only to files that explain it: no honest picture is `_RATIO` times smaller there
_RATIO = 500
_PIXEL_BYTES = 9  # of a JPEG: coefficients of a progressive one, then its pixels, then Pillow's copy of them

START = b"\xff\xd8"

_SCAN, _END = b"\xff\xda", b"\xff\xd9"
_LOST = re.compile("premature end of data segment|bad (Huffman|arithmetic) code|instead of RST")
"""libjpeg's warnings that pixels are missing or wrong. Its others, as of bytes too many before a marker, leave them whole."""

_SPACES = {"YCbCr": "RGB", "Gray": "GRAY"}
"""Colour spaces that are decoded to the same pixels as by Pillow; and to what."""
_MARKER = re.compile(rb"\xff+([^\x00\xff\xd0-\xd8])", re.DOTALL)


class UndecodableError(ValueError):
    """These bytes are no image that can be used; the message says why, and `advice` what helps if that is a setting."""

    def __init__(self, reason: str, advice: str = "") -> None:
        super().__init__(reason)
        self.advice = advice


@dataclass(frozen=True)
class Jpeg:
    """A JPEG of which no pixel is missing."""

    data: bytes
    """The file, with an end marker."""
    size: tuple[int, int] = (0, 0)
    """Width and height."""
    grey: bool = False
    pixels: Pixels | None = None
    """[H, W, 1 or 3]; None where Pillow has to decode it, and to judge what simplejpeg does not know."""


def decode_jpeg(data: bytes, **scale: int) -> Jpeg:
    """Decode a JPEG strictly, with simplejpeg's options of scale. Raises UndecodableError where pixels are missing.

    Without its end marker a file is whole if all of its scans are, and nothing follows them: a download that was cut ends
    in zeros. Before an end marker bytes too many are ignored, as all viewers do.
    """
    ended = False
    while True:
        space, size, pixels = "", (0, 0), None
        try:
            height, width, space, _ = simplejpeg.decode_jpeg_header(data)
            size = width, height
            check_size(*size, _PIXEL_BYTES, len(data))
            mode = _SPACES.get(space, "RGB" if space == "RGB" else "CMYK")
            pixels = simplejpeg.decode_jpeg(data, mode, **scale)
        except UndecodableError:
            raise
        except Exception as error:  # KeyError, too, of a colour space that it does not know
            reason = jpeg_fault(error)
            if not ended and _END not in data[data.rfind(_SCAN) :]:
                data, ended = data + _END, True
                continue
            if ended or _LOST.search(reason):
                raise UndecodableError(reason) from None
        if ended and not _has_every_scan(data):
            raise UndecodableError("it ends before its last scan")
        return Jpeg(data, size, space == "Gray", pixels if space in _SPACES else None)


def _has_every_scan(data: bytes) -> bool:
    """Whether the scans of a JPEG together give every coefficient of every component to its last bit.

    libjpeg does not miss a scan: a progressive image that is cut between two is only coarse, or has no colours.
    """
    missing: set[tuple[int, int]] = set()
    place = 2
    while match := _MARKER.search(data, place):
        kind, place = match[1][0], match.end()
        length = int.from_bytes(data[place : place + 2])
        body = data[place + 2 : place + length]
        if kind in (0xC0, 0xC1, 0xC2, 0xC9, 0xCA):  # a frame: 8 bits, height, width, components
            missing = {(component, k) for component in body[6::3] for k in range(64)}
        elif kind == 0xDA:  # a scan: components, first and last coefficient, bits that are still to come
            first, last, bits = body[-3:]
            if bits & 15 == 0:
                missing -= {(component, k) for component in body[1:-3:2] for k in range(first, last + 1)}
        place += length
    return not missing


def check_size(width: int, height: int, pixel_bytes: int, stored: int) -> None:
    """Raise UndecodableError if decoding would take more memory than is given to a file of `stored` bytes.

    `pixel_bytes` is what one pixel takes, in all of its copies.
    """
    needed = width * height * pixel_bytes
    if width * height > MAX_PIXELS:
        raise UndecodableError(f"{width} x {height} pixels are more than {MAX_PIXELS:,}")
    if needed > MAX_BYTES or (needed > _FREE_BYTES and 4 * width * height > _RATIO * stored):
        raise UndecodableError(f"{width} x {height} pixels would take {needed:,} bytes of memory, from a file of {stored:,}")


def jpeg_fault(error: Exception) -> str:
    """Return an error's first line, or its name."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
