"""Images to WebDataset shards with an index: what `biggan shard` does to one split.

The samples are shuffled with a fixed seed (a folder comes sorted by class, and each shard would hold one class). Equal
input gives equal bytes. The manifest is written last: without it the tars are nobody's.
"""

import hashlib
import io
import os
import re
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

import google_crc32c
import numpy as np
from PIL import Image, ImageOps

from pipeline import storage
from pipeline.errors import ConfigError, DataError
from pipeline.index import (
    MANIFEST,
    ROW,
    Manifest,
    Shard,
    dump_index,
    dump_manifest,
    index_name,
    load_manifest,
)
from pipeline.sources import Source

Fit = Literal["crop", "pad"]

_OURS = re.compile(r"\d{6}\.tar(\.idx)?|\.\d{6}\.tar.*\.tmp|manifest\.json")
_CHUNK = 64  # images that a thread encodes at a time


@dataclass(frozen=True)
class PackConfig:
    """How images become samples."""

    resolution: int
    """Height and width of every stored image, pixels."""
    fit: Fit = "crop"
    """crop: the largest centred square, resampled (Lanczos). pad: zeros all around, pixels untouched."""
    shard_bytes: int = 64 << 20
    """A shard is closed when it has grown past this."""
    seed: int = 0
    """Of the shuffle."""
    threads: int = 0
    """That decode and encode; 0: one per core, at most 8."""


@dataclass(frozen=True)
class Sample:
    """One image as it is stored."""

    label: int
    image: bytes
    extension: str
    """png or jpg."""
    grey: bool


def packed(source: Source, uri: str, config: PackConfig) -> Manifest | None:
    """The manifest at `uri` if it is what packing `source` would write; None if packing has to be done.

    Raises ConfigError if `uri` holds anything else than leftovers of an interrupted pack.
    """
    found = storage.names(uri)
    if MANIFEST in found:
        manifest = load_manifest(uri)
        if manifest.source == _recipe(source, config):
            return manifest
        raise ConfigError(f"{uri} holds other shards, or the source has changed: add --overwrite to replace them")
    foreign = [name for name in found if not _OURS.fullmatch(name)]
    if foreign:
        raise ConfigError(f"{uri} is not empty (it holds {foreign[0]}): name another DST, or add --overwrite")
    return None


def pack(source: Source, uri: str, config: PackConfig, progress: Callable[[int], None]) -> Manifest:
    """Write `source` to `uri` in place of shards that are there. `progress` is told how many more samples are done.

    Raises DataError for an image that cannot be read, ConfigError for one that does not fit, StorageError if `uri`
    fails; in every case what was written is removed.
    """
    return write_shards(_encoded(source, config, progress), uri, source.classes, config, _recipe(source, config))


def write_shards(
    samples: Iterator[Sample], uri: str, classes: tuple[str, ...], config: PackConfig, recipe: str = ""
) -> Manifest:
    """Write `samples` to `uri` in their order, in place of shards that are there; if it fails, what was written is removed."""
    _clear(uri)
    try:
        shards: list[Shard] = []
        counts, grey = np.zeros(len(classes), np.int64), True
        for number, part in enumerate(_cut(samples, config.shard_bytes)):
            shards.append(_write_shard(uri, f"{number:06d}.tar", sum(shard.samples for shard in shards), part))
            counts += np.bincount([sample.label for sample in part], minlength=len(counts))
            grey &= all(sample.grey for sample in part)
        manifest = Manifest(
            shards=tuple(shards),
            classes=classes,
            class_counts=tuple(counts.tolist()),
            resolution=config.resolution,
            channels=1 if grey else 3,
            source=recipe,
        )
        storage.write_bytes(storage.join(uri, MANIFEST), dump_manifest(manifest))
    except BaseException:
        _clear(uri)
        raise
    return manifest


def _recipe(source: Source, config: PackConfig) -> str:
    options = (config.resolution, config.fit, config.shard_bytes, config.seed)
    return hashlib.sha256(repr((source.fingerprint, source.classes, *options)).encode()).hexdigest()[:32]


def _clear(uri: str) -> None:
    """Remove what an earlier pack left; the manifest first, so that the rest is never taken for whole."""
    ours = [name for name in storage.names(uri) if _OURS.fullmatch(name)]
    for name in sorted(ours, key=lambda name: name != MANIFEST):
        storage.remove(storage.join(uri, name))


def _cut(samples: Iterator[Sample], shard_bytes: int) -> Iterator[list[Sample]]:
    """Consecutive samples of one shard at a time. The last one may be small: at least a sample, never none."""
    shard: list[Sample] = []
    size = 0
    for sample in samples:
        shard.append(sample)
        size += 1536 + -(-len(sample.image) // 512) * 512  # two headers, the label's block, the image's blocks
        if size >= shard_bytes:
            yield shard
            shard, size = [], 0
    if shard:
        yield shard


def _write_shard(uri: str, name: str, first: int, samples: list[Sample]) -> Shard:
    """Write a tar and its index. Keys are sample ids, so that nobody has to parse names."""
    from webdataset.writer import TarWriter  # imports torch

    rows = []
    buffer = io.BytesIO()
    with TarWriter(buffer, mtime=0, user="", group="") as tar:
        for number, sample in enumerate(samples, first):
            label = str(sample.label).encode()
            # A tar member is a header block and its data. The writer sorts by extension: cls, jpg, png.
            block = tar.tarstream.offset // 512 + 3
            rows.append((block, len(sample.image), google_crc32c.value(sample.image), sample.label))
            tar.write({"__key__": f"{number:09d}", "cls": label, sample.extension: sample.image})
    data, index = buffer.getvalue(), dump_index(np.array(rows, ROW), buffer.tell())
    storage.write_bytes(storage.join(uri, name), data)
    storage.write_bytes(storage.join(uri, index_name(name)), index)
    return Shard(name, len(samples), len(data), google_crc32c.value(data), google_crc32c.value(index))


def _encoded(source: Source, config: PackConfig, progress: Callable[[int], None]) -> Iterator[Sample]:
    """All samples in shuffled order, encoded by threads (Pillow releases the interpreter lock), few at a time."""
    order = np.argsort(np.random.Philox(key=config.seed).random_raw(len(source.labels)), kind="stable")
    threads = config.threads or min(8, len(os.sched_getaffinity(0)))
    waiting: deque[Future[list[Sample]]] = deque()
    pool = ThreadPoolExecutor(threads, "encode")

    def encode(chunk: list[int]) -> list[Sample]:
        return [_sample(source, i, config) for i in chunk]

    try:
        for first in range(0, len(order), _CHUNK):
            waiting.append(pool.submit(encode, order[first : first + _CHUNK].tolist()))
            while len(waiting) > (2 * threads if first + _CHUNK < len(order) else 0):
                samples = waiting.popleft().result()
                yield from samples
                progress(len(samples))
    finally:
        pool.shutdown(cancel_futures=True)


def _sample(source: Source, i: int, config: PackConfig) -> Sample:
    name, label = source.names[i], int(source.labels[i])
    item = source.read(i)
    if isinstance(item, bytes):
        image, keep = _opened(item, name, config.resolution)
        if keep:
            return Sample(label, item, "jpg" if image.format == "JPEG" else "png", image.mode == "L")
    else:
        image = Image.fromarray(item)
    image = _fitted(image, name, config)
    out = io.BytesIO()
    image.save(out, "PNG", compress_level=1)
    return Sample(label, out.getvalue(), "png", image.mode == "L")


def _opened(data: bytes, name: str, resolution: int) -> tuple[Image.Image, bool]:
    """A decoded picture, upright, in mode L or RGB; and whether its bytes can be stored as they are."""
    try:
        with Image.open(io.BytesIO(data)) as file:
            file.load()
            image = ImageOps.exif_transpose(file)
            keep = (
                file.format in ("JPEG", "PNG")
                and file.mode in ("L", "RGB")
                and file.size == (resolution, resolution)
                and file.getexif().get(0x0112, 1) == 1  # stored upright
            )
            kind = file.format
    except Exception as error:  # Pillow's decoders raise whatever their format's parser meets
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"cannot read the image {name} ({reason}): replace or remove it, then run again") from None
    if image.mode in ("1", "L"):
        image = image.convert("L")
    elif image.mode in ("LA", "PA", "RGBA", "P") and ("transparency" in image.info or image.mode.endswith("A")):
        # Under transparent pixels lies whatever the drawing program left there: show them on white.
        picture = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
    elif image.mode in ("P", "CMYK", "YCbCr", "RGB"):
        image = image.convert("RGB")
    else:
        raise DataError(f"{name} has pixels of type {image.mode}: convert it to 8-bit grey or RGB, then run again")
    image.format = kind
    return image, keep


def _fitted(image: Image.Image, name: str, config: PackConfig) -> Image.Image:
    size = config.resolution
    if config.fit == "crop":
        return image if image.size == (size, size) else ImageOps.fit(image, (size, size), Image.Resampling.LANCZOS)
    width, height = image.size
    if max(width, height) > size:
        raise ConfigError(f"{name} is {width} x {height}: too large for --resolution {size} with --fit pad")
    canvas = Image.new(image.mode, (size, size))
    canvas.paste(image, ((size - width) // 2, (size - height) // 2))
    return canvas
