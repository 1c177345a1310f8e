"""What can be packed, by what lies at a place: folders, zips, IDX, CIFAR, ImageNet's tars, parquet, shards of ours.

A source is one split: names, labels, and a function that reads image i. Images stay where they are until they are read.
"""

import zipfile
from collections.abc import Callable
from pathlib import Path

from pipeline import source_cifar, source_idx, source_imagenet, source_parquet, source_shards, source_trees, storage
from pipeline.errors import ConfigError
from pipeline.source import Source

__all__ = ["Source", "open_source"]

_IMAGENET = (source_imagenet.TRAIN, source_imagenet.VAL)


def open_source(place: str, say: Callable[[str], None] = print) -> list[Source]:
    """The splits at `place`: a path, a URI of shards, `fashion-mnist` or `fashion-mnist:PATH`.

    Raises ConfigError where there is nothing to pack, DataError if what is there is damaged. `say` gets progress notes.
    """
    name, _, where = place.partition(":")
    if name == "fashion-mnist":
        return source_idx.open_fashion_mnist(where, say)
    if "://" in place:
        if shards := source_shards.open_shards(place):
            return shards
        if any(name.endswith(".tar") for name in storage.names(place)):
            raise source_shards.foreign(place)
        raise ConfigError(f"SRC {place} has no shards; images are packed from this machine's disk: copy them here first")
    path = Path(place)
    if not path.exists():
        if "{" in place and ".tar" in place:
            raise source_shards.foreign(place)
        raise ConfigError(f"SRC {place} does not exist: name a folder of class folders, a zip, or `fashion-mnist`")
    return _folder(path, say) if path.is_dir() else _file(path, say)


def _folder(path: Path, say: Callable[[str], None]) -> list[Source]:
    if idx := [file for file in sorted(path.iterdir()) if source_idx.NAME.fullmatch(file.name)]:
        return source_idx.open_idx(idx)
    for folder in (path, path / "cifar-10-batches-bin", path / "cifar-100-binary"):
        if files := source_cifar.find(folder):
            return source_cifar.open_files(str(folder), files)
    if tars := [path / name for name in _IMAGENET if (path / name).exists()]:
        return source_imagenet.open_imagenet(str(path), tars, say)
    if files := source_parquet.find(path):
        return source_parquet.open_parquet(str(path), files)
    if shards := source_shards.open_shards(str(path)):
        return shards
    if any(path.glob("*.tar")) and not any(file.is_dir() for file in path.iterdir()):
        raise source_shards.foreign(str(path))
    return source_trees.open_folder(path, say)


def _file(path: Path, say: Callable[[str], None]) -> list[Source]:
    if source_idx.NAME.fullmatch(path.name):
        return source_idx.open_idx([path])
    if path.name in _IMAGENET:
        return source_imagenet.open_imagenet(str(path), [path], say)
    if path.suffix == ".parquet":
        return source_parquet.open_parquet(str(path), [path])
    if path.name.endswith((".tar", ".tar.gz", ".tgz")):
        if cifar := source_cifar.open_tar(path):
            return cifar
        raise source_shards.foreign(str(path))
    if zipfile.is_zipfile(path):
        return source_trees.open_zip(path, say)
    raise ConfigError(f"SRC {path} is none of: zip, ...-images-idx3-ubyte(.gz), .parquet, CIFAR's or ImageNet's tar")
