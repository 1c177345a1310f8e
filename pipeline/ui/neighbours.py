"""Training images nearest to a sample, by the distance of their pixels: whether a generator copies."""

import threading
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from model.config import ModelConfig
from pipeline.data.loader import DataConfig, DataLoader
from pipeline.data.manifest import Manifest
from pipeline.errors import ConfigError

_SIDE, _SHOWN = 32, 64  # pixels that are compared, and that are kept to be shown: 10,000 images take 250 MB at most
_BATCH = 64


@dataclass(frozen=True)
class Neighbour:
    """A training image."""

    label: int
    distance: float
    """Root mean square over pixels, in levels of 0 .. 255."""
    image: Tensor
    """uint8 [C, s, s], s at most 64."""


class Neighbours:
    """An index of `limit` training images, or all of them, that a thread reads once somebody asks.

    They are the first ones of an order that is drawn from all shards, seed 0: the same images each time. Raises ConfigError
    if they are not of the model's kind.
    """

    def __init__(self, data: DataConfig, manifest: Manifest, config: ModelConfig, limit: int) -> None:
        if manifest.channels != config.channels:
            raise ConfigError(f"{data.uri} has images of {manifest.channels} channels, and the model draws {config.channels}")
        self._data = replace(data, resolution=config.resolution, flip=False, transform=None)
        self._manifest = manifest
        self.classes = manifest.classes
        self.samples = manifest.samples
        self.total = min(limit, manifest.samples)
        self.done = 0
        """Images that have been read; `total` once the index is there."""
        self.side = min(_SIDE, config.resolution)
        shown = min(_SHOWN, config.resolution)
        self._features = torch.empty(self.total, config.channels * self.side**2)
        self._shown = torch.empty(self.total, config.channels, shown, shown, dtype=torch.uint8)
        self._labels = torch.empty(self.total, dtype=torch.int64)
        self.count = 0
        """Of those the ones in the index: a damaged image has none."""
        self._failure: Exception | None = None
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def ready(self) -> bool:
        """Whether the index is there; reads it where nobody has begun. Raises what has stopped that; then it can begin anew."""
        with self._lock:
            if self._failure:
                failure, self._failure, self._thread = self._failure, None, None
                raise failure
            if self._thread is None:
                self._thread = threading.Thread(target=self._read, name="neighbours", daemon=True)
                self._thread.start()
        return self.done == self.total

    def nearest(self, image: Tensor, count: int) -> list[Neighbour]:
        """The `count` nearest to `image`, uint8 [C, r, r], nearest first, of an index that is `ready`."""
        found = self._features[: self.count]
        wanted = self._pooled(image[None])
        distances = (found - wanted).square_().mean(1).sqrt()
        values, places = distances.topk(min(count, self.count), largest=False)
        return [
            Neighbour(int(self._labels[i]), value, self._shown[i])
            for value, i in zip(values.tolist(), places.tolist(), strict=True)
        ]

    def close(self) -> None:
        """End the reading."""
        self._stop.set()
        if self._thread:
            self._thread.join()

    def _read(self) -> None:
        seen: set[int] = set()
        self.done = self.count = 0
        try:
            with DataLoader(
                self._data, self._manifest, seed=0, global_batch=_BATCH, micro_batch=_BATCH, rank=0, world_size=1
            ) as stream:
                while self.done < self.total and not self._stop.is_set():
                    batch = next(stream)
                    # A substitute for a damaged image, or one that a mixture gives twice, is no image of its own.
                    samples = batch.samples[: self.total - self.done].tolist()
                    new = [i for i, sample in enumerate(samples) if bool(batch.valid[i]) and sample not in seen]
                    seen.update(samples)
                    self._add(batch.images[new], batch.labels[new])
                    self.done += len(samples)
        except Exception as error:
            self._failure = error  # raised where somebody waits for it

    def _add(self, images: Tensor, labels: Tensor) -> None:
        place = slice(self.count, self.count + len(images))
        self._features[place] = self._pooled(images)
        self._shown[place] = F.adaptive_avg_pool2d(images.float(), self._shown.shape[-1]).round().to(torch.uint8)
        self._labels[place] = labels
        self.count += len(images)

    def _pooled(self, images: Tensor) -> Tensor:
        """uint8 [n, C, r, r] -> float32 [n, C * side * side]."""
        return F.adaptive_avg_pool2d(images.float(), self.side).flatten(1)
