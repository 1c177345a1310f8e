"""Run the other loaders as their documentation shows, with the same batches at the end.

Each has a function that writes the pictures in its form, where it has one, and a function that gives an iterable of
one epoch's batches. Two of them import torchvision for parts that are not used here; where it is not installed, an
empty module stands in, and the table says so.
"""

import importlib.metadata
import importlib.util
import io
import os
import random
import sys
import types
from collections.abc import Callable, Iterable
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from benchmarks.support.photos import image_files
from pipeline.data.manifest import load_manifest

BATCH, CROP, WORKERS = 64, 224, 2
SHARD_MB = 8  # of every format: several shards for each worker, even of a small set
MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])

Transform = Callable[[Any], Tensor]
Loader = Callable[[str, Transform, Path], Iterable[Any]]
"""(where the data is, what makes an image of bytes, an empty folder for a cache) -> batches (images, labels)."""


def cropped(pixels: Tensor, mirror: bool) -> Tensor:
    """The centre of [256, 256, 3], [224, 224, 3]; the way to mirror it that is cheapest here (NumPy's costs 15 times it)."""
    margin = (pixels.shape[0] - CROP) // 2
    pixels = pixels[margin : margin + CROP, margin : margin + CROP]
    return pixels.flip(1) if mirror else pixels.contiguous()


def same_decoder(data: bytes) -> Tensor:
    """JPEG to uint8 [224, 224, 3] with our decoder. Height, width, channels: a batch becomes channels_last for nothing."""
    return cropped(torch.from_numpy(simplejpeg.decode_jpeg(data, "RGB")), random.random() < 0.5)


def recipe(data: Any) -> Tensor:
    """JPEG (or a picture of Pillow's) to float32 [3, 224, 224]: what torchvision's CenterCrop, RandomHorizontalFlip,
    ToTensor and Normalize do to Pillow's pictures, written out.
    """
    image = data if isinstance(data, Image.Image) else Image.open(io.BytesIO(data), formats=["JPEG"])
    image, margin = image.convert("RGB"), (image.width - CROP) // 2
    image = image.crop((margin, margin, margin + CROP, margin + CROP))
    if torch.rand(1) < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float().div(255)
    return pixels.sub_(MEAN[:, None, None]).div_(STD[:, None, None])


def webdataset(where: str, transform: Transform, cache: Path) -> Iterable[Any]:
    """Our own shards, which are its format, shuffled as its documentation advises; over HTTP it reads through curl."""
    import webdataset as wds

    shards = [f"{where}/shards/{shard.name}" for shard in load_manifest(f"{where}/shards").shards]
    dataset = wds.WebDataset(shards, shardshuffle=100).shuffle(1000)
    if transform is recipe:
        dataset = dataset.decode("pil")
    dataset = dataset.to_tuple("jpg", "cls").map_tuple(transform, int).batched(BATCH)
    return wds.WebLoader(dataset, batch_size=None, num_workers=WORKERS, persistent_workers=True)


def pack_mds(images: Path, out: Path) -> None:
    """Write MDS shards with MDSWriter. Its `jpeg` column would store and give the same bytes, through Pillow."""
    from streaming import MDSWriter

    columns = {"image": "bytes", "label": "int"}
    with MDSWriter(out=str(out), columns=columns, size_limit=SHARD_MB << 20) as writer:
        for path, label in image_files(images):
            writer.write({"image": path.read_bytes(), "label": label})


def mds(where: str, transform: Transform, cache: Path) -> Iterable[Any]:
    """A StreamingDataset under torch's DataLoader. From a store it downloads whole shards, and reads them from disk."""
    from streaming import StreamingDataset

    class Images(StreamingDataset):
        def __getitem__(self, at: Any) -> tuple[Tensor, int]:
            sample = super().__getitem__(at)
            return transform(sample["image"]), sample["label"]

    place: dict[str, str] = {"local": f"{where}/mds"}
    if where.startswith("s3://"):
        os.environ["S3_ENDPOINT_URL"] = os.environ["AWS_ENDPOINT_URL"]
        place = {"remote": f"{where}/mds", "local": str(cache / "mds")}
    dataset = Images(**place, shuffle=True, batch_size=BATCH)
    for stream in dataset.streams:
        stream._downloader.clean_up()  # or the workers share one open connection, and get pieces of each other's shards
    return DataLoader(dataset, batch_size=BATCH, num_workers=WORKERS, persistent_workers=True)


def _litdata_sample(item: tuple[str, int]) -> dict[str, Any]:
    return {"image": Path(item[0]).read_bytes(), "label": item[1]}


def pack_litdata(images: Path, out: Path) -> None:
    """Write chunks with `litdata.optimize`."""
    import litdata

    files = [(str(path), label) for path, label in image_files(images)]
    options: dict[str, Any] = {"num_workers": 1, "chunk_bytes": f"{SHARD_MB}MB", "verbose": False}
    litdata.optimize(_litdata_sample, files, str(out), **options)


def litdata(where: str, transform: Transform, cache: Path) -> Iterable[Any]:
    """Its own dataset and loader. From a store it downloads whole chunks, and reads them from disk."""
    import litdata

    class Images(litdata.StreamingDataset):
        def __getitem__(self, at: Any) -> tuple[Tensor, int]:
            sample = super().__getitem__(at)
            return transform(sample["image"]), sample["label"]

    options: dict[str, Any] = {}
    if where.startswith("s3://"):
        keys = {"aws_access_key_id": "any", "aws_secret_access_key": "any", "region_name": "us-east-1"}
        options["storage_options"] = {"endpoint_url": os.environ["AWS_ENDPOINT_URL"], **keys}
        options["cache_dir"] = str(cache)
        # Its store of choice refuses a server without TLS, and litdata has no option for that.
        litdata.streaming.downloader._OBSTORE_CLIENT_OPTIONS["allow_http"] = True
    dataset = Images(f"{where}/litdata", shuffle=True, drop_last=False, **options)
    return litdata.StreamingDataLoader(dataset, batch_size=BATCH, num_workers=WORKERS, persistent_workers=True)


class _Folder(Dataset[tuple[Tensor, int]]):
    """A file per image: what torchvision's ImageFolder does."""

    def __init__(self, folder: Path, transform: Transform) -> None:
        self._files, self._transform = image_files(folder), transform

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        path, label = self._files[i]
        return self._transform(path.read_bytes()), label


def folder(where: str, transform: Transform, cache: Path) -> Iterable[Any]:
    """A plain Dataset of files under torch's DataLoader."""
    dataset = _Folder(Path(where) / "images", transform)
    return DataLoader(dataset, batch_size=BATCH, shuffle=True, num_workers=WORKERS, persistent_workers=True)


LOADERS: dict[str, Loader] = {"webdataset": webdataset, "mds": mds, "litdata": litdata, "folder": folder}
PACKERS: dict[str, Callable[[Path, Path], None]] = {"mds": pack_mds, "litdata": pack_litdata}
PACKAGES = {"webdataset": "webdataset", "mds": "mosaicml-streaming", "litdata": "litdata", "folder": "torch"}


def package_version(loader: str) -> str | None:
    """Return the version of the package of a loader; None if it is not installed."""
    try:
        return importlib.metadata.version(PACKAGES[loader])
    except importlib.metadata.PackageNotFoundError:
        return None


def torchvision_is_missing() -> bool:
    """Return whether the packages that import torchvision get an empty module instead."""
    return importlib.util.find_spec("torchvision") is None


def stub_torchvision() -> None:
    """Put empty modules in torchvision's place: names can be imported from them, and do nothing."""

    class Empty(types.ModuleType):
        def __getattr__(self, name: str) -> type:
            if name.startswith("__"):
                raise AttributeError(name)
            return type(name, (), {})

    for name in ("torchvision", "torchvision.datasets", "torchvision.transforms", "torchvision.transforms.functional"):
        module = Empty(name)
        module.__path__ = []
        module.__spec__ = ModuleSpec(name, None, is_package=True)
        sys.modules[name] = module
