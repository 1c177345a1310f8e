"""How one image becomes one sample: decoded, cropped or padded, resampled, encoded; or kept as it is."""

import io
from dataclasses import dataclass
from typing import Any, Literal

from PIL import Image

from pipeline.data.decode import Filter, UndecodableError, fitted, opened
from pipeline.errors import ConfigError, DataError
from pipeline.images.pillow import SOURCES
from pipeline.packing.sources.base import Source

Fit = Literal["crop", "pad"]
Form = Literal["png", "jpg", "webp"]

_KEPT = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}


class ImageError(DataError):
    """One image that cannot be packed."""

    def __init__(self, name: str, reason: str) -> None:
        self.reason = reason
        super().__init__(f"cannot pack the image {name} ({reason}): replace or remove it, or leave it out with --on-error skip")


@dataclass(frozen=True, kw_only=True)
class PackConfig:
    """How images become samples, and samples shards."""

    resolution: int | None
    """Height and width of every stored image, pixels. None: each is stored as it is (a JPEG, PNG or WebP byte for byte)."""
    fit: Fit = "crop"
    """crop: the largest centred square, resampled. pad: zeros all around, pixels untouched."""
    filter: Filter = "lanczos"
    """That resamples."""
    form: Form = "png"
    """What is encoded. A JPEG that needs no change is never encoded again."""
    quality: int = 95
    """1 to 100, of jpg (always without chroma subsampling) and webp."""
    shard_bytes: int = 64 << 20
    """A shard is closed when it has grown past this."""
    seed: int = 0
    """Of the shuffle."""
    workers: int = 0
    """Threads that decode and encode; 0: one per core. The shards are the same for any number."""
    skip_bad: bool = False
    """Leave out images that cannot be packed, and report them, instead of stopping at the first."""

    def __str__(self) -> str:
        encoded = self.form if self.form == "png" else f"{self.form} of quality {self.quality}"
        if self.resolution is None:
            return f"images as they are, others as {encoded}"
        how = f"cropped, {self.filter}" if self.fit == "crop" else "padded"
        return f"{self.resolution} px, {how}, {encoded}"


@dataclass(frozen=True, kw_only=True)
class EncodedSample:
    """One image as it is stored."""

    label: int
    image: bytes
    extension: str
    """png, jpg or webp."""
    grey: bool
    side: int = 0
    """Shorter side of the original, pixels."""
    original_bytes: int = 0
    """Of the original file; of its pixels where it was not a file."""


def encoded(source: Source, i: int, config: PackConfig) -> EncodedSample:
    """Image i of `source`. Raises DataError or ConfigError, naming it, if it cannot be packed."""
    name, label, item = source.names[i], int(source.labels[i]), source.read(i)
    if not isinstance(item, bytes):
        image = Image.fromarray(item)
        return _saved(image, name, label, config=config, side=min(image.size), size=item.nbytes)
    image, extension = _opened(item, name, config)
    side = min(image.size)
    if extension:
        return EncodedSample(
            label=label, image=item, extension=extension, grey=image.mode == "L", side=side, original_bytes=len(item)
        )
    return _saved(image, name, label, config=config, side=side, size=len(item))


def _opened(data: bytes, name: str, config: PackConfig) -> tuple[Image.Image, str]:
    """A decoded picture, upright, in mode L or RGB; and its extension if its bytes can be stored as they are."""
    try:
        image, stored = opened(data, SOURCES)
    except UndecodableError as error:
        raise ImageError(name, str(error)) from None
    extension = _KEPT.get(stored.format, "")
    fits = stored.size == (config.resolution, config.resolution) and stored.mode in ("L", "RGB") and not stored.turned
    if config.resolution is not None and not (fits and extension in ("jpg", config.form)):
        extension = ""
    return image, extension


def _saved(image: Image.Image, name: str, label: int, config: PackConfig, side: int, size: int) -> EncodedSample:
    if config.resolution is not None:
        image = _fitted(image, name, config.resolution, config)
    image.info = {}  # colour profile, comments: a sample is pixels
    out = io.BytesIO()
    try:
        if config.form == "png":
            image.save(out, "PNG", compress_level=1)
        elif config.form == "jpg":
            image.save(out, "JPEG", quality=config.quality, subsampling=0)
        else:
            image.save(out, "WEBP", quality=config.quality)
    except (OSError, ValueError) as error:
        raise ImageError(name, f"{image.width} x {image.height} cannot be {config.form}: {error}") from None
    return EncodedSample(
        label=label, image=out.getvalue(), extension=config.form, grey=image.mode == "L", side=side, original_bytes=size
    )


def _fitted(image: Image.Image, name: str, size: int, config: PackConfig) -> Image.Image:
    if config.fit == "crop":
        return fitted(image, size, config.filter)
    width, height = image.size
    if max(width, height) > size:
        raise ConfigError(f"{name} is {width} x {height}: too large for --resolution {size} with --fit pad")
    canvas = Image.new(image.mode, (size, size))
    canvas.paste(image, ((size - width) // 2, (size - height) // 2))
    return canvas


def as_json(config: PackConfig) -> dict[str, Any]:
    """What of `config` is in the shards: everything but who made them and how failures were met."""
    return {name: value for name, value in vars(config).items() if name not in ("workers", "skip_bad")}
