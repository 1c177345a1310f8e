"""How good samples are: what an extractor says of them and of real images, and the figures that follow.

Class accuracy and a Fréchet distance belong together: a generator that draws one easy picture per class has perfect accuracy
and a bad distance. Each figure carries its extractor's name, as in FID[efflite0]: without it, it means nothing.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from model.latents import Truncation
from model.networks import Generator
from model.sampling import full_precision, generate
from pipeline.data.loader import DataConfig
from pipeline.data.manifest import Manifest
from pipeline.evaluation import metrics
from pipeline.evaluation.classifier import real_batches
from pipeline.evaluation.networks import Extractor
from pipeline.evaluation.worker_pool import WorkerPool
from pipeline.progress import progress
from pipeline.wording import plural

BATCH = 256
"""Images per forward pass. Decides speed and memory; and the last digits, as every batch size does."""

OPTIONAL = ("is", "kid", "prdc", "intra-fid")
"""Figures besides FID and accuracy, by the names on the command line."""

Batches = Iterator[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Judged:
    """What an extractor said about a set of images."""

    features: Tensor
    """fp32 [n, d]."""
    labels: Tensor
    """int64 [n]: the class that each image should show."""
    predictions: Tensor
    """int64 [n]."""
    score: tuple[float, float] | None = None
    """Inception score, mean and standard deviation; None for fewer than 1,000 images."""

    @property
    def accuracy(self) -> float:
        """Share of images that the extractor takes for what they should show."""
        return float((self.labels == self.predictions).double().mean())

    def class_accuracy(self, classes: Sequence[str]) -> dict[str, float]:
        """The same by class, for those that occur."""
        right = self.labels == self.predictions
        found = [(name, right[self.labels == i]) for i, name in enumerate(classes)]
        return {name: float(part.double().mean()) for name, part in found if len(part)}


class Images(Protocol):
    """A set of images in which each has a position."""

    @property
    def count(self) -> int:
        """How many."""

    def batches(self, start: int, end: int, batch: int, device: torch.device) -> Batches:
        """(uint8 [n, C, r, r], labels [n]) of positions [start, end), from a multiple of `batch`."""


@dataclass(frozen=True)
class Real:
    """The first `count` images of a fixed order of shards; the whole of them if there are so many."""

    config: DataConfig
    manifest: Manifest
    count: int

    def batches(self, start: int, end: int, batch: int, device: torch.device) -> Batches:
        """See `Images`."""
        return real_batches(self.config, self.manifest, end, batch, start=start)


@dataclass(frozen=True, kw_only=True)
class DrawnSamples:
    """`count` samples with the classes in turn, rounded to uint8."""

    generator: Generator
    num_classes: int
    count: int
    seed: int
    truncation: float | None = None
    method: Truncation = "truncated-normal"

    def batches(self, start: int, end: int, batch: int, device: torch.device) -> Batches:
        """See `Images`."""
        options: dict[str, Any] = {"seed": self.seed, "truncation": self.truncation, "method": self.method, "batch": batch}
        self.generator.to(device)
        for first in range(start, end, batch):
            labels = torch.arange(first, min(first + batch, end)) % self.num_classes
            yield generate(self.generator, labels, start=first, **options), labels


def extract(peers: WorkerPool, extractor: Extractor, images: Images, batch: int = BATCH) -> Judged:
    """Show `images` to `extractor`; each rank a stretch of them. For rank 0. Raises ValueError if there are none."""
    extractor.network.cpu()  # as it travels
    if isinstance(images, DrawnSamples):
        images.generator.cpu()
    parts = peers.all(_extract, extractor, images, batch)
    features, logits, labels = (torch.cat(part) for part in zip(*(part for part in parts if part), strict=True))
    enough = len(logits) >= metrics.LEAST["is"]
    return Judged(features, labels, logits.argmax(1), metrics.inception_score(logits) if enough else None)


@torch.no_grad()
def _extract(peers: WorkerPool, extractor: Extractor, images: Images, batch: int) -> tuple[Tensor, Tensor, Tensor] | None:
    """Features, logits and labels of this rank's share, None if it has none."""
    network, found = extractor.network.to(peers.device), []
    start, end = peers.share(images.count, batch)
    with progress(_doing(images, peers), end - start) if peers.rank == 0 else nullcontext(lambda more: None) as update:
        for pixels, labels in images.batches(start, end, batch, peers.device):
            with full_precision(peers.device):
                features, logits = network(pixels.to(peers.device))
            found.append((features.float().cpu(), logits.float().cpu(), labels))
            update(len(labels))
    if not found:
        return None
    features, logits, labels = (torch.cat(part) for part in zip(*found, strict=True))
    return features, logits, labels


def _doing(images: Images, peers: WorkerPool) -> str:
    """Word the progress of rank 0, which is that of all: their shares are equal."""
    what = "drawing samples" if isinstance(images, DrawnSamples) else "looking at real images"
    return what if peers.world_size == 1 else f"{what} (process 1 of {peers.world_size})"


def too_few(name: str, sets: Mapping[str, Tensor], classes: Sequence[str]) -> str | None:
    """Why figure `name` cannot be had from sets of images with these labels; None if it can."""
    least = metrics.LEAST[name]
    for what, labels in sets.items():
        if name == "intra-fid":
            counts = torch.bincount(labels, minlength=len(classes))
            worst = int(counts.argmin())
            if counts[worst] < least:
                return f"{name} needs {plural(least, 'image')} of each class, {what} have {counts[worst]:,} of {classes[worst]}"
        elif len(labels) < least:
            return f"{name} needs {plural(least, 'image')}, {what} are {len(labels):,}"
    return None


@dataclass(frozen=True)
class Figures:
    """Of one set of images against a reference. Keys are NAME[extractor]."""

    values: dict[str, float]
    spread: dict[str, float]
    """Standard deviation over splits (IS) or subsets (KID)."""
    by_class: dict[str, float]
    """The Fréchet distance within each class."""


def measure(
    extractor: str, reference: Judged, images: Judged, names: Iterable[str], classes: Sequence[str], device: torch.device
) -> Figures:
    """FID, and the figures `names` of `OPTIONAL`, for which there must be enough images (`too_few`)."""
    real, fake = reference.features.to(device), images.features.to(device)
    values, spread, by_class = {"FID": metrics.frechet_distance(real, fake)}, {}, {}
    if "is" in names and images.score:
        values["IS"], spread["IS"] = images.score
    if "kid" in names:
        values["KID"], spread["KID"] = metrics.kernel_distance(real, fake)
    if "prdc" in names:
        values |= vars(metrics.manifolds(real, fake))
    if "intra-fid" in names:
        found = metrics.intra_frechet(real, reference.labels, fake, images.labels)
        by_class = {classes[label]: distance for label, distance in found.items()}
        values["intra-FID"] = sum(by_class.values()) / len(by_class)
    named, spread = ({f"{name}[{extractor}]": value for name, value in part.items()} for part in (values, spread))
    return Figures(named, spread, by_class)
