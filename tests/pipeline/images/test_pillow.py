"""Pillow's parsers are named, so that no file chooses one; and what decoding takes is known before it begins."""

import ast
import io
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, UnidentifiedImageError

from jobs.cli import main
from pipeline.data.decode import UndecodableError, decode_into, looked_at, opened
from pipeline.data.loader import DataConfig, DataLoader
from pipeline.data.manifest import load_manifest
from pipeline.errors import DataError
from pipeline.images.pillow import DRAWN, SHARDS, SOURCES, open_image
from tests.support.encoded_pictures import encoded, smooth_picture
from tests.support.shards_by_hand import write_shards
from tests.support.tars import write_tar

PRODUCT = Path(__file__).parents[3]
POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 16 16\n%%EndComments\nshowpage\n%%EOF\n"


def test_every_call_of_image_open_names_its_formats() -> None:
    """One that does not would hand PostScript to Ghostscript."""
    calls = []
    for path in [path for name in ("pipeline", "jobs", "model", "benchmarks") for path in (PRODUCT / name).rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text() if "Image" in path.read_text() else "")):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("Image.open"):
                calls.append(path.name)
                assert "formats" in {keyword.arg for keyword in node.keywords}, f"{path}:{node.lineno}"
    assert {"pillow.py", "isolated_load.py"} <= set(calls)


def test_no_format_that_starts_a_program_is_among_them() -> None:
    assert not {"EPS", "WMF", "FITS", "PSD", "MPEG", "HDF5", "GRIB", "BUFR"} & set(SOURCES)
    assert set(DRAWN) < set(SHARDS) < set(SOURCES)


@pytest.fixture
def ghostscript(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that a `gs` in PATH writes when it is called."""
    (tmp_path / "bin").mkdir()
    called, program = tmp_path / "called", tmp_path / "bin" / "gs"
    program.write_text(f"#!/bin/sh\necho called >> {called}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", None)  # not looked up yet
    return called


def test_postscript_called_jpg_starts_no_program(
    ghostscript: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "src" / "a").mkdir(parents=True)
    (tmp_path / "src" / "a" / "0.jpg").write_bytes(POSTSCRIPT)
    assert main(["shard", str(tmp_path / "src"), str(tmp_path / "dst"), "--resolution", "16"]) == 65
    write_tar(tmp_path / "tars" / "0.tar", [("0.jpg", POSTSCRIPT), ("0.cls", b"0")])
    assert main(["index", str(tmp_path / "tars")]) == 65
    folder = str(write_shards(tmp_path / "shards", [(f"{i}.jpg", POSTSCRIPT) for i in range(4)]))
    assert main(["doctor", "--data", folder, "--seconds", "0.1"]) == 65
    capsys.readouterr()
    config = DataConfig(uri=folder, decode_threads=1)
    shape = {"global_batch": 2, "micro_batch": 2, "rank": 0, "world_size": 1}
    with DataLoader(config, load_manifest(folder), seed=0, **shape) as stream, pytest.raises(DataError, match="in no format"):
        next(stream)
    for formats in (SHARDS, SOURCES, DRAWN):
        with pytest.raises(UnidentifiedImageError):
            open_image(POSTSCRIPT, formats)
    assert not ghostscript.exists()
    with pytest.raises(OSError, match="cannot identify image file"):  # and it would have been called
        Image.open(io.BytesIO(POSTSCRIPT)).load()
    assert ghostscript.exists()


def png(width: int, height: int, kind: int) -> bytes:
    """A PNG of zeros in 8 bits of colour type `kind`, smaller by about a thousand than its pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    channels, packer = {0: 1, 2: 3, 6: 4}[kind], zlib.compressobj(9)
    row = bytes(1 + width * channels)
    pixels = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 8, kind, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


@pytest.mark.long
@pytest.mark.parametrize("kind", [2, 6])
def test_a_file_of_kilobytes_is_not_given_gigabytes(kind: int) -> None:
    data = png(9_000, 6_000, kind)
    assert len(data) < 250_000
    for decode in (opened, looked_at, lambda data: decode_into(data, np.empty((16, 16, 3), np.uint8))):
        with pytest.raises(UndecodableError, match=r"9000 x 6000 pixels would take .* bytes of memory, from"):
            decode(data)


def test_a_jpeg_that_claims_more_than_it_holds_is_not_decoded() -> None:
    data = bytearray(encoded(smooth_picture(64, 64), "JPEG"))
    place = data.index(b"\xff\xc0") + 5
    data[place : place + 4] = struct.pack(">HH", 9_000, 9_000)
    for crop in (None, 16):
        with pytest.raises(UndecodableError, match="9000 x 9000 pixels would take"):
            decode_into(bytes(data), np.empty((16, 16, 3), np.uint8), crop)


@pytest.mark.slow
def test_a_large_photo_with_transparency_is_decoded_with_two_copies(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (500, 500, 4), np.uint8)
    (tmp_path / "x.png").write_bytes(encoded(Image.fromarray(np.tile(noise, (10, 10, 1))), "PNG", compress_level=1))
    code = """
import resource, sys
from pipeline.data.decode import opened
data, peak = open(sys.argv[1], "rb").read(), lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before = peak()
assert opened(data)[0].size == (5000, 5000)
print(peak() - before)
"""
    said = subprocess.run([sys.executable, "-c", code, tmp_path / "x.png"], capture_output=True, text=True, check=True)
    assert int(said.stdout) < 260_000  # KiB: 8 bytes a pixel, and some rows


def test_rows_at_a_time_are_the_picture_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (33, 21, 4), np.uint8)
    data = encoded(Image.fromarray(pixels), "PNG")
    whole = np.asarray(opened(data)[0])
    monkeypatch.setattr("pipeline.data.decode._ROWS_AT_A_TIME", 100)
    np.testing.assert_array_equal(np.asarray(opened(data)[0]), whole)
