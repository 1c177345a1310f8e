"""Pictures without what is written about them: only what their pixels need."""

import zlib
from collections.abc import Iterator

from pipeline.images.jpeg import START

_PNG = b"\x89PNG\r\n\x1a\n"


def without_metadata(data: bytes) -> bytes:
    """Return a PNG, WebP or JPEG without its metadata, which Pillow refuses where they are damaged or large; others as is."""
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
