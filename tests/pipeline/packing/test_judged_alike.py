"""Packing, indexing and training judge an image alike: by its pixels, whatever its metadata are."""

import io
import struct
import warnings
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.data.decode import UndecodableError, decode_into, looked_at, opened
from pipeline.packing.encode import ImageError, PackConfig, encoded
from pipeline.packing.sources.base import Source
from tests.support.encoded_pictures import encoded as as_file
from tests.support.encoded_pictures import smooth_picture

TURNED = Image.Exif()
TURNED[0x0112] = 6


def packed(data: bytes, config: PackConfig) -> bytes | None:
    """What packing stores of a file; None if it refuses it."""
    source = Source(split="", classes=("a",), names=("a/x",), labels=np.zeros(1, np.int64), read=lambda i: data, fingerprint="")
    try:
        return encoded(source, 0, config).image
    except ImageError as error:
        assert " at 0x" not in str(error)
        return None


def indexed(data: bytes) -> tuple[tuple[int, int], bool] | None:
    try:
        return looked_at(data)
    except UndecodableError:
        return None


def trained(data: bytes, side: int, channels: int = 3) -> np.ndarray[Any, np.dtype[np.uint8]] | None:
    out = np.empty((side, side, channels), np.uint8)
    try:
        decode_into(data, out)
    except UndecodableError:
        return None
    return out


def verdict(data: bytes) -> bool:
    """Whether the image is good, if all agree: packing in three ways, indexing, training at its size and at another."""
    found = indexed(data)
    verdicts = {found is not None}
    for config in (PackConfig(resolution=None), PackConfig(resolution=16), PackConfig(resolution=8, form="webp")):
        stored = packed(data, config)
        verdicts.add(stored is not None)
        if stored is not None:
            verdicts |= {indexed(stored) is not None, trained(stored, 16) is not None}
    side = min(found[0]) if found and min(found[0]) else 16
    verdicts |= {trained(data, side) is not None, trained(data, 7, channels=1) is not None}
    assert len(verdicts) == 1
    if found:
        image, stored_as = opened(data)
        assert found == ((0, 0) if stored_as.turned else stored_as.size, image.mode == "L")
        if image.width == image.height:
            out = trained(data, image.width, 1 if image.mode == "L" else 3)
            np.testing.assert_array_equal(out, np.asarray(image).reshape(np.shape(out)))
    return found is not None


def segment(jpeg: bytes, payload: bytes, marker: int = 0xE1) -> bytes:
    return jpeg[:2] + bytes([0xFF, marker]) + struct.pack(">H", len(payload) + 2) + payload + jpeg[2:]


def chunk(png: bytes, kind: bytes, payload: bytes, checksum: int = 0) -> bytes:
    crc = zlib.crc32(kind + payload) ^ checksum
    return png[:33] + struct.pack(">I", len(payload)) + kind + payload + struct.pack(">I", crc) + png[33:]


def animation(form: str, **options: Any) -> bytes:
    return as_file(smooth_picture(16, 16), form, save_all=True, append_images=[smooth_picture(16, 16)], **options)


def narrow(mode: str) -> Image.Image:
    image = smooth_picture(16, 16, "L" if mode == "I;16" else "RGB")
    return Image.fromarray(np.asarray(image).astype(np.uint16) * 257) if mode == "I;16" else image.convert(mode)


JPEG, PNG = as_file(smooth_picture(16, 16), "JPEG"), as_file(smooth_picture(16, 16), "PNG")
TIFF_HEADER = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0"
LONG_TEXT = b"k\0\0" + zlib.compress(bytes(2 << 20))
BROKEN_METADATA = {
    "exif empty": segment(JPEG, b"Exif\0\0"),
    "exif without header": segment(JPEG, b"Exif\0\0\0\x08\0\x02\x01\x12\0\x03"),
    "exif cut": segment(JPEG, b"Exif\0\0" + TIFF_HEADER[:10]),
    "exif of nowhere": segment(JPEG, b"Exif\0\0II*\0\xff\xff\xff\x7f"),
    "exif of orientation 99": segment(JPEG, b"Exif\0\0" + TIFF_HEADER + b"\x63\0\0\0\0\0\0\0"),
    "xmp": segment(JPEG, b"http://ns.adobe.com/xap/1.0/\0<x tiff:Orientation='1'>\xa8\xff</x>"),
    "photoshop": segment(JPEG, b"Photoshop 3.0\0" + b"8BIM\x04\x04\0\0\xff\xff\xff\xff", 0xED),
    "profile": segment(JPEG, b"ICC_PROFILE\0\x07\x01garbage", 0xE2),
    "mpf": segment(JPEG, b"MPF\0II*\0\xff\xff\xff\x7f", 0xE2),
    "exif of cmyk": segment(as_file(smooth_picture(16, 16, "CMYK"), "JPEG"), b"Exif\0\0\0\x08\0"),
    "png exif": chunk(PNG, b"eXIf", b"\0\x08\0\x02\x01\x12\0\x03"),
    "png raw profile": chunk(PNG, b"tEXt", b"Raw profile type exif\0\nexif\n  9\nzz"),
    "png long text": chunk(PNG, b"zTXt", LONG_TEXT),
    "png text cut": chunk(PNG, b"zTXt", LONG_TEXT[:20]),
    "png checksum of text": chunk(PNG, b"tEXt", b"k\0v", checksum=1),
    "png profile": chunk(PNG, b"iCCP", b"icc\0\0" + zlib.compress(bytes(80 << 20))),
    "png unknown": chunk(PNG, b"abCd", bytes(100), checksum=1),
    "webp exif": as_file(smooth_picture(16, 16), "WEBP", exif=b"Exif\0\0garbage"),
    "webp exif cut off": as_file(smooth_picture(16, 16), "WEBP", exif=b"Exif\0\0garbage")[:-6],
    "webp xmp cut off": animation("WEBP", xmp=b"<x/>" * 9)[:-9],
}
KINDS = {
    "progressive": as_file(smooth_picture(16, 16), "JPEG", progressive=True),
    "restarts": as_file(smooth_picture(16, 16), "JPEG", restart_marker_blocks=1),
    "grey": as_file(smooth_picture(16, 16, "L"), "JPEG"),
    "cmyk": as_file(smooth_picture(16, 16, "CMYK"), "JPEG"),
    "turned": as_file(smooth_picture(16, 16), "JPEG", exif=TURNED),
    "turned png": as_file(smooth_picture(16, 16), "PNG", exif=TURNED),
    "turned webp": as_file(smooth_picture(16, 16), "WEBP", exif=TURNED),
    "turned by xmp": segment(JPEG, b'http://ns.adobe.com/xap/1.0/\0<x tiff:Orientation="6"/>'),
    **{f"png {mode}": as_file(narrow(mode), "PNG") for mode in ("L", "LA", "RGBA", "P", "1", "I;16")},
    "palette": as_file(smooth_picture(16, 16).quantize(8), "PNG", transparency=0),
    "webp": as_file(smooth_picture(16, 16), "WEBP"),
    "webp without loss": as_file(smooth_picture(16, 16, "RGBA"), "WEBP", lossless=True),
    "gif": as_file(smooth_picture(16, 16), "GIF"),
    **{f"animated {form}": animation(form) for form in ("GIF", "PNG", "WEBP", "MPO")},
}
ALMOST = {
    "bytes before the end": JPEG[:-2] + b"\x7f" * 245 + JPEG[-2:],
    "bytes behind the end": JPEG + b"\0" * 99,
    "no end": JPEG[:-2],
    "half an end": JPEG[:-1],
    **{f"no end, {kind}": KINDS[kind][:-2] for kind in ("progressive", "restarts", "grey", "cmyk", "turned")},
    "no end of a png": PNG[:-12],
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [*BROKEN_METADATA, *KINDS, *ALMOST])
def test_a_picture_that_is_whole_is_good_everywhere(name: str) -> None:
    assert verdict((BROKEN_METADATA | KINDS | ALMOST)[name])


@pytest.mark.parametrize("name", BROKEN_METADATA)
def test_broken_metadata_change_no_pixel_and_say_nothing(name: str) -> None:
    data = BROKEN_METADATA[name]
    kind = "CMYK" if "cmyk" in name else None
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        warnings.filterwarnings(
            "ignore", category=UserWarning, module=r"PIL\."
        )  # as `pipeline.data.decode` does; pytest undoes it
        image, stored = opened(data)
    assert not said and not stored.turned
    if kind is None and "webp" not in name:
        np.testing.assert_array_equal(np.asarray(image), np.asarray(Image.open(io.BytesIO(PNG if "png" in name else JPEG))))


CUT = [(kind, end) for kind in ("plain", "progressive", "restarts", "grey", "cmyk") for end in ("nothing", "marker", "zeros")]
CUT.remove(("progressive", "marker"))  # cut between two scans it is a JPEG of less quality


@pytest.mark.parametrize(("kind", "end"), CUT)
def test_a_jpeg_without_some_of_its_pixels_is_bad_everywhere(kind: str, end: str) -> None:
    """A cut file, also one that was given an end or its size again: Pillow shows grey instead."""
    data = KINDS.get(kind, JPEG)
    whole = np.asarray(opened(data)[0])
    for cut in range(data.index(b"\xff\xda") + 12, len(data) - 2, 13):
        part = data[:cut] + {"nothing": b"", "marker": b"\xff\xd9", "zeros": bytes(1000)}[end]
        if verdict(part):
            np.testing.assert_array_equal(np.asarray(opened(part)[0]), whole)


def test_a_progressive_jpeg_that_is_cut_between_two_scans_is_bad() -> None:
    data = KINDS["progressive"]
    scan = data.rindex(b"\xff\xda")
    assert not verdict(data[: data.rindex(b"\xff\xc4", 0, scan)])
    assert not verdict(data[:scan])


@pytest.mark.parametrize("data", [b"", b"\xff\xd8", b"<html>", bytes(1000), PNG[:60], JPEG[:100], KINDS["webp"][:60]])
def test_what_is_no_picture_is_bad_everywhere(data: bytes) -> None:
    assert not verdict(data)


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """One of the files above, with a few bytes changed, inserted, removed or cut off."""
    data = bytearray(draw(st.sampled_from([JPEG, PNG, *KINDS.values(), *ALMOST.values()])))
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, max(0, len(data) - 1)))
        action = draw(st.sampled_from(["change", "change", "insert", "remove", "cut"]))
        if action == "change":
            data[place : place + 1] = draw(st.binary(min_size=1, max_size=1))
        elif action == "insert":
            data[place:place] = draw(st.binary(max_size=9))
        else:
            del data[place : place + 3 if action == "remove" else len(data)]
    return bytes(data)


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=150, deadline=None)
@given(damaged())
def test_all_judge_alike_whatever_is_damaged(data: bytes) -> None:
    verdict(data)
