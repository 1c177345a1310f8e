import io
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from pipeline.data.decode import UndecodableError, decode_into, fitted, opened, upright
from pipeline.images.pillow import SOURCES
from tests.support.encoded_pictures import RNG, encoded, smooth_picture


def decoded(data: bytes, side: int, channels: int = 3) -> np.ndarray[Any, np.dtype[np.uint8]]:
    out = np.full((side, side, channels), 77, np.uint8)
    decode_into(data, out)
    return out


def pillow(data: bytes, mode: str = "RGB") -> np.ndarray[Any, np.dtype[np.uint8]]:
    pixels = np.asarray(Image.open(io.BytesIO(data)).convert(mode))
    return pixels[..., None] if mode == "L" else pixels


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("channels", [1, 3])
def test_plain_images_are_as_pillow_decodes_them(form: str, mode: str, channels: int) -> None:
    data = encoded(smooth_picture(48, 48, mode), form)
    ours, theirs = decoded(data, 48, channels), pillow(data, "L" if channels == 1 else "RGB")
    # simplejpeg takes a JPEG's own luma for grey, Pillow's convert() computes it from RGB.
    assert np.abs(ours.astype(int) - theirs).max() <= (3 if form == "JPEG" else 0)


@pytest.mark.parametrize("options", [{"subsampling": 0}, {"subsampling": 2}, {"progressive": True}, {"quality": 30}])
def test_jpegs_of_any_kind_are_as_pillow_decodes_them(options: dict[str, Any]) -> None:
    data = encoded(smooth_picture(64, 64), "JPEG", **options)
    assert np.abs(decoded(data, 64).astype(int) - pillow(data)).max() <= 2


@pytest.mark.parametrize("form", ["JPEG", "PNG"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("side", "crop"), [(48, None), (40, 40), (20, None), (20, 30)])
def test_a_mirrored_image_is_the_image_mirrored(form: str, channels: int, side: int, crop: int | None) -> None:
    data = encoded(smooth_picture(48, 48), form)
    plain, mirrored = np.empty((2, side, side, channels), np.uint8)
    decode_into(data, plain, crop)
    decode_into(data, mirrored, crop, mirrored=True)
    np.testing.assert_array_equal(mirrored, plain[:, ::-1])


def test_what_is_remembered_of_one_jpeg_is_not_taken_for_another() -> None:
    """Of the same program and size: plain, plain again, turned, of another size, of another colour space, cut."""
    image, turned = smooth_picture(48, 48), Image.Exif()
    turned[0x0112] = 3
    files = [
        encoded(one, "JPEG") for one in (image, smooth_picture(48, 48), smooth_picture(56, 48), smooth_picture(48, 48, "CMYK"))
    ]
    files.insert(2, encoded(image, "JPEG", exif=turned))
    for data in [*files, *files[::-1]]:
        wanted = np.asarray(fitted(upright(data).convert("RGB"), 48))
        assert np.abs(decoded(data, 48).astype(int) - wanted).max() <= 3
    for cut in (
        b"",
        files[0][:2],
        files[0][:300],
        files[0][: files[0].index(b"\xff\xda")],
        files[0][: files[0].index(b"\xff\xda") + 2],
    ):
        with pytest.raises(UndecodableError):
            decoded(cut, 48)


def test_cmyk_jpegs_go_through_pillow() -> None:
    data = encoded(smooth_picture(32, 32, "CMYK"), "JPEG")
    np.testing.assert_array_equal(decoded(data, 32), pillow(data))


def test_palettes_and_bits() -> None:
    for mode in ("P", "1"):
        data = encoded(smooth_picture(32, 32, mode), "PNG")
        np.testing.assert_array_equal(decoded(data, 32), pillow(data))


def test_sixteen_bits_keep_their_upper_eight() -> None:
    wide = RNG.integers(0, 1 << 16, (32, 32), dtype=np.uint16)
    np.testing.assert_array_equal(decoded(encoded(Image.fromarray(wide), "PNG"), 32, 1)[..., 0], wide >> 8)


@pytest.mark.parametrize("mode", ["LA", "RGBA", "P"])
def test_transparent_pixels_are_white(mode: str) -> None:
    image = smooth_picture(32, 32).convert("RGBA")
    image.paste((10, 20, 30, 0), (0, 0, 16, 32))
    image = image.quantize(16) if mode == "P" else image.convert(mode)
    pixels = decoded(encoded(image, "PNG"), 32)
    assert (pixels[:, :16] == 255).all() and (pixels[:, 16:] != 255).any()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_images_stand_upright(orientation: int, form: str) -> None:
    original = smooth_picture(40, 40)
    back = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # the transposition that makes an image of this orientation
    stored = original if orientation == 1 else original.transpose(Image.Transpose(back[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(stored, form, exif=exif, **({"quality": 98, "subsampling": 0} if form == "JPEG" else {}))
    difference = np.abs(decoded(data, 40).astype(int) - np.asarray(original))
    assert difference.max() <= (12 if form == "JPEG" else 0)


def test_other_sizes_are_cropped_in_the_middle_and_resampled() -> None:
    image = smooth_picture(90, 60)
    image.paste((255, 0, 0), (0, 0, 15, 60))  # outside the largest centred square
    image.paste((255, 0, 0), (75, 0, 90, 60))
    data = encoded(image, "PNG")
    pixels = decoded(data, 30)
    inner = image.crop((15, 0, 75, 60)).resize((30, 30), Image.Resampling.LANCZOS)
    # At the two cut edges Pillow's filter takes in what lies outside.
    np.testing.assert_array_equal(pixels[:, 3:-3], np.asarray(inner)[:, 3:-3])
    assert fitted(image, 30, "box").tobytes() == image.crop((15, 0, 75, 60)).resize((30, 30), Image.Resampling.BOX).tobytes()


def test_a_profile_changes_nothing() -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    image = smooth_picture(32, 32)
    np.testing.assert_array_equal(decoded(encoded(image, "PNG", icc_profile=profile), 32), np.asarray(image))


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_every_cut_is_noticed_or_harmless(form: str) -> None:
    """A cut image is refused, unless all of its pixels are there."""
    data = encoded(smooth_picture(16, 16), form)
    whole = decoded(data, 16)
    for end in range(len(data)):
        try:
            pixels = decoded(data[:end], 16)
        except UndecodableError:
            continue
        np.testing.assert_array_equal(pixels, whole)


@pytest.mark.parametrize("data", [b"", b"\xff\xd8", b"\xff\xd8\xff\xe1\0\4Exif\0\0", b"not an image", bytes(1000)])
def test_what_is_no_image_is_refused(data: bytes) -> None:
    with pytest.raises(UndecodableError):
        decoded(data, 16)


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")
def test_a_bomb_is_refused_before_it_is_decoded() -> None:
    data = encoded(Image.new("1", (20_000, 20_000)), "PNG")
    assert len(data) < 100_000
    with pytest.raises(UndecodableError, match="pixels"):
        upright(data)
    with pytest.raises(UndecodableError, match="12000 x 9000 pixels"):
        upright(encoded(Image.new("1", (12_000, 9_000)), "PNG"))


def test_floats_are_refused() -> None:
    with pytest.raises(UndecodableError, match="type F"):
        opened(encoded(Image.fromarray(np.zeros((8, 8), np.float32)), "TIFF"), SOURCES)


@pytest.mark.parametrize("form", ["JPEG", "PNG"])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_crop_is_cut_from_the_middle_before_anything_is_resampled(form: str, channels: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (50, 70) + (3,) * (channels == 3), np.uint8)
    data = encoded(Image.fromarray(pixels), form)
    whole = upright(data)
    middle = whole.crop((15, 5, 55, 45))
    for side in (40, 20):
        out = np.empty((side, side, channels), np.uint8)
        decode_into(data, out, crop=40)
        wanted = np.asarray(fitted(middle, side)).reshape(out.shape)
        # Two decoders may round a JPEG's colours differently.
        assert np.abs(out.astype(int) - wanted).max() <= (2 if form == "JPEG" else 0)
    decode_into(data, out, crop=50)
    with pytest.raises(UndecodableError, match=r"it has 70 x 50 pixels, and data.crop=51 asks for more"):
        decode_into(data, out, crop=51)
