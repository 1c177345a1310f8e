"""Samples as files: a sheet for people; one .npz, a folder of pictures by class, or shards for other tools."""

import itertools
import re
import zipfile
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from torch import Tensor

from model.sampling import grid
from pipeline import storage
from pipeline.errors import ConfigError
from pipeline.images.pillow import ENCODERS, png
from pipeline.packing import pack
from pipeline.packing.pack import EncodedSample, PackConfig
from pipeline.storage.containment import below
from pipeline.storage.temporary import replacing

Batches = Iterable[tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]]
"""Pixels [n, H, W, C] and labels [n]."""

_WEBP_SIDE = 16383  # pixels; the format has no more bits for it


def write_sheet(uri: str, images: Tensor, columns: int) -> None:
    """Write uint8 [n, C, r, r] row by row as one .png or .webp. Raises ConfigError for what WebP cannot hold."""
    pixels, form = grid(images, columns).numpy(), uri.lower().rpartition(".")[2]
    if form == "webp" and max(pixels.shape) > _WEBP_SIDE:
        raise ConfigError(f"OUT {uri}: {max(pixels.shape)} pixels are too many for WebP; let it end in .png")
    storage.write_bytes(uri, ENCODERS[form](pixels))


def make_parent(path: Path) -> None:
    """Make the folder that `path` is to be in. Raises ConfigError where a file is in its way."""
    if files := [parent for parent in path.parents if parent.exists() and not parent.is_dir()]:
        raise ConfigError(f"{path} cannot be written: {files[0]} is a file; name a path below a folder")
    path.parent.mkdir(parents=True, exist_ok=True)


def write_npz(path: Path, batches: Batches, count: int) -> None:
    """Write `count` images as `arr_0` [count, H, W, C] uint8 and their labels as `arr_1` [count] int64.

    guided-diffusion's evaluator reads `arr_0`. Only a batch is in memory at a time, and the file appears when it is whole.
    """
    make_parent(path)
    labels: list[npt.NDArray[np.int64]] = []
    with replacing(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        with archive.open("arr_0.npy", "w", force_zip64=True) as member:
            for pixels, part in batches:
                if not labels:
                    header = {"descr": "|u1", "fortran_order": False, "shape": (count, *pixels.shape[1:])}
                    np.lib.format.write_array_header_1_0(member, header)
                member.write(pixels.tobytes())
                labels.append(part)
        with archive.open("arr_1.npy", "w") as member:
            np.lib.format.write_array(member, np.concatenate(labels))


def folder_names(classes: Sequence[str]) -> list[str]:
    """Return a folder for each class, of its own: its name, or `NUMBER-NAME` where that is no plain name or another's, too.

    Plain are printable names of at most 200 bytes without slashes. They are compared without case, as some disks do.
    """
    often = Counter(name.casefold() for name in classes)
    safe = [re.sub(r"[^\w.() +=@,'&-]", "-", name).strip(" .-") for name in classes]
    safe = [name.encode()[:80].decode(errors="ignore") for name in safe]
    numbered = [f"{i}-{name}" if name else str(i) for i, name in enumerate(safe)]
    plain = [
        often[name.casefold()] == 1
        and name.isprintable()
        and len(name.encode(errors="replace")) <= 200
        and not (set(name) & set("/\\") or name.startswith((".", "~")) or name != name.strip())
        for name in map(str, classes)
    ]
    names = [name if ok and name else other for name, ok, other in zip(classes, plain, numbered, strict=True)]
    return names if len({name.casefold() for name in names}) == len(names) else numbered


def write_folder(uri: str, batches: Batches, classes: Sequence[str], form: str) -> None:
    """Write image i as CLASS/<i, 6 digits>.png or .webp below `uri`; for CLASS see `folder_names`."""
    number, folders = 0, folder_names(classes)
    for pixels, labels in batches:
        for image, label in zip(pixels, labels.tolist(), strict=True):
            place = storage.join(below(uri, folders[label], "the model"), f"{number:06d}.{form}")
            storage.write_bytes(place, ENCODERS[form](image))
            number += 1


def write_sample_shards(uri: str, batches: Batches, classes: Sequence[str]) -> None:
    """Write shards as `biggan shard` does, in the order of `batches`: labels there must be mixed already."""
    iterator = iter(batches)
    first = next(iterator)
    samples = (
        EncodedSample(label=label, image=png(image), extension="png", grey=image.shape[2] == 1)
        for pixels, labels in itertools.chain([first], iterator)
        for image, label in zip(pixels, labels.tolist(), strict=True)
    )
    pack.write_shards(samples, uri, tuple(classes), PackConfig(resolution=first[0].shape[1]))
