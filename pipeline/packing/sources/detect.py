"""What can be packed, by what lies at a place: folders, zips, IDX, CIFAR, ImageNet's tars, parquet, shards of ours.

A source is one split: names, labels, and a function that reads image i. Images stay where they are until they are read.
All of a folder is looked at before it is taken for anything, and what can be read in two ways is refused.
"""

import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from pipeline import storage
from pipeline.data.manifest import MANIFEST
from pipeline.errors import ConfigError
from pipeline.packing.sources import cifar as source_cifar
from pipeline.packing.sources import folders as source_folders
from pipeline.packing.sources import idx as source_idx
from pipeline.packing.sources import imagenet as source_imagenet
from pipeline.packing.sources import parquet as source_parquet
from pipeline.packing.sources import shards as source_shards
from pipeline.packing.sources.base import Source
from pipeline.packing.sources.files import Files, folder_files, zip_files
from pipeline.packing.sources.layout import distinct, escaped, kind_of, printable_name, said, split_name
from pipeline.untrusted import parsing
from pipeline.wording import command, plural

__all__ = ["Source", "open_source"]

_IMAGENET = (source_imagenet.TRAIN, source_imagenet.VAL)
_TARS = (".tar", ".tar.gz", ".tgz")


def open_source(
    place: str, say: Callable[[str], None] = print, split: str | None = None, label: str | None = None
) -> list[Source]:
    """Return the splits at `place`: a path, a URI of shards, `fashion-mnist` or `fashion-mnist:PATH`.

    `split` names the only one that is wanted; the others are not compared with it. `label` is None (by what is there),
    `none` (one class of all) or `name` (each folder is a class). `say` gets progress notes, what each was taken for, and
    what was passed over. Raises ConfigError where there is nothing to pack, or more than one way to read it; DataError if
    what is there is damaged.
    """
    sources = _open(place, say, split, label)
    if label == "name" and not all("class folder" in source.layout for source in sources):
        raise ConfigError(f"--label name: {place} has no class folders; leave it out")
    if split is not None:
        sources = _chosen(place, sources, split)
    for source in sources:
        where = f"{place}, {source.split}" if source.split else place
        if source.layout:
            say(printable_name(f"{where}: {plural(len(source.labels), 'image')}: {source.layout}"))
        if source.passed:
            say(printable_name(f"{where}: passed over {said(source.passed)}"))
    if label == "none":
        return [replace(source, classes=source_folders.ALL, labels=np.zeros_like(source.labels)) for source in sources]
    _refuse_names(place, sources)
    return [replace(source, classes=distinct(source.classes)) for source in sources]


def _refuse_names(place: str, sources: list[Source]) -> None:
    """Raise ConfigError for a class name that a manifest cannot hold, before the first image is packed."""
    for source in sources:
        if wrong := next((name for name in source.classes if escaped(name) != name), None):
            raise ConfigError(
                f"SRC {printable_name(place)}: the name of the class {escaped(wrong)} is not UTF-8: rename it, "
                "or add --label none for one class"
            )


def _open(place: str, say: Callable[[str], None], split: str | None, label: str | None) -> list[Source]:
    name, _, where = place.partition(":")
    if name == "fashion-mnist":
        return source_idx.open_fashion_mnist(where, say)
    path = storage.local_path(place)
    if path is None:
        if shards := source_shards.open_shards(place):
            return shards
        if any(name.endswith(".tar") for name in storage.names(place)):
            raise source_shards.foreign(place)
        raise ConfigError(f"SRC {place} has no shards; images are packed from this machine's disk: copy them here first")
    if not path.exists():
        if "{" in place and ".tar" in place:
            raise source_shards.foreign(place)
        raise ConfigError(f"SRC {place} does not exist: name a folder of class folders, a zip, or `fashion-mnist`")
    return _folder(path, say, split, label) if path.is_dir() else _file(path, say, split, label)


def _chosen(place: str, sources: list[Source], split: str) -> list[Source]:
    """The source of this split, by its name or by another word for it."""
    known = [source.split for source in sources if source.split]
    for wanted in (split, split_name(split)):
        if found := [source for source in sources if source.split == wanted and wanted]:
            return found
    raise ConfigError(f"--split {split}: {place} has {', '.join(known) or 'no splits'}")


def _folder(path: Path, say: Callable[[str], None], split: str | None, label: str | None) -> list[Source]:
    shards = source_shards.open_shards(str(path))
    if shards and not shards[0].split:
        return shards
    files = folder_files(path)
    pictures = [image for image in files.paths if "/" in image]
    if shards:
        splits = {source.split for source in shards}
        if apart := [image for image in pictures if image.partition("/")[0] not in splits]:
            manifests = [f"{name}/{MANIFEST}" for name in sorted(splits)]
            raise _two_readings(path, "shards", manifests, "images in folders", apart)
        return shards
    tars = [name for name in files.others if name.endswith(_TARS)]
    if known := _known(path, files, say):
        what, sources, used = known
        if pictures:
            raise _two_readings(path, what, sorted(used), "images in folders", pictures)
        return [replace(source, passed=_unused(files, used)) for source in sources]
    if tables := source_parquet.find(path, files, beside_images=bool(pictures)):
        if pictures or tars:
            kind = "images in folders" if pictures else "tars"
            raise _two_readings(path, "parquet files with images", tables, kind, pictures or tars)
        sources = source_parquet.open_parquet(str(path), [path / name for name in tables], split, label)
        return [replace(source, passed=(*source.passed, *_unused(files, set(tables)))) for source in sources]
    if not files.paths:
        if tars:
            raise source_shards.foreign(str((path / tars[0]).parent))
        if parquet := [path / name for name in files.others if source_parquet.is_table(name)]:
            return source_parquet.open_parquet(str(parquet[0]), parquet[:1], label=label)  # says what its columns lack
    return source_folders.open_tree(files, split, label)


def _known(path: Path, files: Files, say: Callable[[str], None]) -> tuple[str, list[Source], set[str]] | None:
    """Data sets that are recognised by the names of their files: (what, the splits, the files)."""
    if idx := [path / name for name in files.others if source_idx.NAME.fullmatch(name)]:
        labels = {source_idx.labels_of(file).name for file in idx}
        return "IDX files", source_idx.open_idx(idx), {file.name for file in idx} | labels
    for folder in (path, path / "cifar-10-batches-bin", path / "cifar-100-binary"):
        if found := source_cifar.find(folder):
            used = {file.relative_to(path).as_posix() for file in found}
            return "CIFAR's files", source_cifar.open_files(str(folder), found), used
    if tars := [path / name for name in _IMAGENET if name in files.others]:
        sources = source_imagenet.open_imagenet(str(path), tars, say)
        return "ImageNet's tars", sources, {tar.name for tar in tars} | {source_imagenet.DEVKIT}
    return None


def _unused(files: Files, used: set[str]) -> tuple[tuple[str, str], ...]:
    rest = [(image, kind_of(image)) for image in files.paths] + files.left_over()
    return tuple(one for one in rest if one[0] not in used)


def _two_readings(path: Path, what: str, these: list[str], other: str, those: list[str]) -> ConfigError:
    """The refusal of a folder with two data sets. One that is all in one folder can be named by itself."""
    homes = [{name.rpartition("/")[0].partition("/")[0] for name in names} for names in (these, those)]
    ways = []
    for home, kind in zip(homes, (what, other), strict=True):
        if len(home) == 1 and home != {""} and homes[0] != homes[1]:
            place = path / home.pop()
            ways.append(command("index", place, "--out", "DST") if kind == "tars" else command("shard", place, "DST"))
    return ConfigError(
        f"SRC {path} holds {what} ({these[0]}) and {other} ({those[0]}), two data sets: "
        + " or ".join([*ways, "move one of them to another folder"])
    )


def _file(path: Path, say: Callable[[str], None], split: str | None, label: str | None) -> list[Source]:
    if source_idx.NAME.fullmatch(path.name):
        return source_idx.open_idx([path])
    if path.name in _IMAGENET:
        return source_imagenet.open_imagenet(str(path), [path], say)
    if source_parquet.is_table(path.name):
        return source_parquet.open_parquet(str(path), [path], split, label)
    if path.name.endswith(_TARS):
        if cifar := source_cifar.open_tar(path):
            return cifar
        raise source_shards.foreign(str(path))
    with parsing(f"cannot read {path}"):
        is_zip = zipfile.is_zipfile(path)
    if is_zip:
        return source_folders.open_tree(zip_files(path), split, label)
    raise ConfigError(f"SRC {path} is none of: zip, ...-images-idx3-ubyte(.gz), .parquet, CIFAR's or ImageNet's tar")
