import io
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.errors import ConfigError, DataError
from pipeline.packing.encode import Form
from pipeline.packing.pack import PackConfig, pack
from pipeline.packing.sources.detect import open_source
from tests.support.packing import quiet, samples, save


def pack_one(folder: Path, config: PackConfig) -> tuple[np.ndarray, int]:
    """The only image of a folder as stored, [H, W] or [H, W, 3], and the manifest's channels."""
    shutil.rmtree(folder / "dst", ignore_errors=True)
    manifest = pack(open_source(str(folder / "src"))[0], str(folder / "dst"), config, quiet)
    (sample,) = samples(folder / "dst")
    return np.asarray(Image.open(io.BytesIO(sample["png"]))), manifest.channels


def test_crop_takes_the_centred_square(tmp_path: Path) -> None:
    pixels = np.zeros((64, 128, 3), np.uint8)
    pixels[:, 32:96] = 200  # the centre
    save(tmp_path / "src" / "a" / "x.png", Image.fromarray(pixels))
    stored, channels = pack_one(tmp_path, PackConfig(resolution=32))
    assert (stored.shape, channels) == ((32, 32, 3), 3)
    assert stored.min() > 180  # at its edge the filter sees a little of what lies outside


def test_pad_keeps_the_pixels(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(1, 256, (28, 20), np.uint8)
    save(tmp_path / "src" / "a" / "x.png", Image.fromarray(pixels))
    stored, channels = pack_one(tmp_path, PackConfig(resolution=32, fit="pad"))
    assert (stored.shape, channels) == ((32, 32), 1)
    np.testing.assert_array_equal(stored[2:30, 6:26], pixels)
    assert (stored == 0).sum() == 32 * 32 - 28 * 20
    with pytest.raises(ConfigError, match=r"a/x\.png is 20 x 28: too large for --resolution 16"):
        pack_one(tmp_path, PackConfig(resolution=16, fit="pad"))


@pytest.mark.parametrize("form", ["png", "jpg", "webp"])
def test_what_is_encoded_anew_has_nothing_but_pixels(tmp_path: Path, form: Form) -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "where I live"
    save(tmp_path / "src" / "a" / "x.jpg", Image.new("RGB", (40, 40)), exif=exif, icc_profile=b"p" * 500, comment=b"me")
    pack(open_source(str(tmp_path / "src"))[0], str(tmp_path / "dst"), PackConfig(resolution=32, form=form), quiet)
    (sample,) = samples(tmp_path / "dst")
    image = Image.open(io.BytesIO(sample[form]))
    assert not dict(image.getexif())
    assert not {"icc_profile", "comment", "exif"} & set(image.info)


def test_turned_photos_stand_upright(tmp_path: Path) -> None:
    pixels = np.zeros((32, 32, 3), np.uint8)
    pixels[:16] = 250  # bright above, and the camera says: turn by 180 degrees
    exif = Image.Exif()
    exif[0x0112] = 3
    save(tmp_path / "src" / "a" / "x.jpg", Image.fromarray(pixels), exif=exif, quality=95)
    stored, _ = pack_one(tmp_path, PackConfig(resolution=32))
    assert stored[:15].mean() < 10
    assert stored[17:].mean() > 240


def test_transparency_becomes_white_and_palettes_become_colours(tmp_path: Path) -> None:
    clear = Image.new("RGBA", (32, 32), (10, 20, 30, 0))
    save(tmp_path / "src" / "a" / "x.png", clear)
    assert (pack_one(tmp_path, PackConfig(resolution=32))[0] == 255).all()
    save(
        tmp_path / "src" / "a" / "x.png",
        Image.new("RGB", (32, 32), (200, 100, 0)).convert("P", palette=Image.Palette.ADAPTIVE),
    )
    assert pack_one(tmp_path, PackConfig(resolution=32))[0][0, 0].tolist() == [200, 100, 0]


def test_pixels_of_16_bits_keep_their_upper_eight_and_floats_are_refused(tmp_path: Path) -> None:
    save(tmp_path / "src" / "a" / "x.png", Image.fromarray(np.full((32, 32), 40_000, np.uint16)))
    assert (pack_one(tmp_path, PackConfig(resolution=32))[0] == 40_000 >> 8).all()
    (tmp_path / "src" / "a" / "x.png").unlink()
    save(tmp_path / "src" / "a" / "x.tif", Image.fromarray(np.zeros((32, 32), np.float32)))
    with pytest.raises(DataError, match=r"a/x\.tif \(its pixels are of type F"):
        pack_one(tmp_path, PackConfig(resolution=32))


def test_kept_images_are_stored_byte_for_byte_and_others_encoded(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 50, 3), np.uint8))
    save(tmp_path / "src" / "a" / "turned.jpg", picture, exif=exif)
    save(tmp_path / "src" / "a" / "cmyk.jpeg", picture.convert("CMYK"))
    save(tmp_path / "src" / "a" / "clear.png", picture.convert("RGBA"))
    save(tmp_path / "src" / "a" / "w.webp", picture.convert("L"))
    save(tmp_path / "src" / "a" / "old.bmp", picture)
    manifest = pack(open_source(str(tmp_path / "src"))[0], str(tmp_path / "dst"), PackConfig(resolution=None), quiet)
    assert (manifest.resolution, manifest.channels, manifest.samples) == (None, 3, 5)
    stored = {
        (key, data) for sample in samples(tmp_path / "dst") for key, data in sample.items() if key in ("jpg", "png", "webp")
    }
    for name in ("turned.jpg", "cmyk.jpeg", "clear.png", "w.webp"):
        assert (name.rpartition(".")[2].replace("jpeg", "jpg"), (tmp_path / "src" / "a" / name).read_bytes()) in stored
    (bmp,) = [data for key, data in stored if data not in {p.read_bytes() for p in (tmp_path / "src" / "a").iterdir()}]
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(bmp))), np.asarray(picture))


@pytest.mark.parametrize(("form", "kind"), [("jpg", "JPEG"), ("webp", "WEBP"), ("png", "PNG")])
def test_other_forms_and_quality(tmp_path: Path, form: Form, kind: str) -> None:
    save(tmp_path / "src" / "a" / "x.png", Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)))
    source = open_source(str(tmp_path / "src"))[0]
    sizes = []
    for quality in (95, 20):
        pack(source, str(tmp_path / str(quality)), PackConfig(resolution=32, form=form, quality=quality), quiet)
        (sample,) = samples(tmp_path / str(quality))
        image = Image.open(io.BytesIO(sample[form]))
        assert (image.format, image.size) == (kind, (32, 32))
        if form == "jpg":
            assert {sampling[1:3] for sampling in image.layer} == {(1, 1)}  # type: ignore[attr-defined]
        sizes.append(len(sample[form]))
    assert (sizes[0] > sizes[1]) == (form != "png")


def test_a_jpeg_of_the_right_size_is_never_encoded_again(tmp_path: Path) -> None:
    file = save(tmp_path / "src" / "a" / "x.jpg", Image.new("RGB", (32, 32), "red"), quality=50)
    for form in ("png", "jpg", "webp"):
        pack(open_source(str(tmp_path / "src"))[0], str(tmp_path / form), PackConfig(resolution=32, form=form), quiet)
        assert samples(tmp_path / form)[0]["jpg"] == file.read_bytes()


def test_filters_differ(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    save(tmp_path / "src" / "a" / "x.png", Image.fromarray(pixels))
    stored = {name: pack_one(tmp_path, PackConfig(resolution=32, filter=name))[0] for name in ("lanczos", "bicubic", "box")}
    means = pixels.reshape(32, 2, 32, 2, 3).mean((1, 3))
    assert np.abs(stored["box"] - means).max() <= 1  # it rounds twice
    assert not np.array_equal(stored["lanczos"], stored["bicubic"])
    assert not np.array_equal(stored["box"], stored["bicubic"])


def test_a_grey_jpeg_in_a_colour_set_is_fine(tmp_path: Path) -> None:
    grey = save(tmp_path / "src" / "a" / "x.jpg", Image.new("L", (32, 32), 9))
    save(tmp_path / "src" / "a" / "y.jpg", Image.new("RGB", (32, 32), "red"))
    manifest = pack(open_source(str(tmp_path / "src"))[0], str(tmp_path / "dst"), PackConfig(resolution=32), quiet)
    assert manifest.channels == 3
    assert grey.read_bytes() in [sample["jpg"] for sample in samples(tmp_path / "dst")]


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")  # pytest takes our own filter away
def test_an_image_of_too_many_pixels_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 10_001, 10_000, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    save(tmp_path / "src" / "a" / "x.png", Image.new("L", (1, 1))).write_bytes(bomb)
    with pytest.raises(DataError, match=r"a/x\.png \(10001 x 10000 pixels are more than 100,000,000\)"):
        pack(open_source(str(tmp_path / "src"))[0], str(tmp_path / "dst"), PackConfig(resolution=32), quiet)
