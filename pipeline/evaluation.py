"""How good samples are: class accuracy, and the Fréchet distance to real images on the judge's features.

Both belong together: a generator that draws one easy picture per class has perfect accuracy and a bad distance.
A Fréchet distance means nothing without its features, so it is always written FID[name of the extractor].
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.networks import Generator
from model.sampling import generate
from pipeline.classifier import Classifier

BATCH = 500
"""Images per forward pass of the classifier; decides speed only."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Judged:
    """What the classifier said about a set of images."""

    features: Floats
    """[n, d]."""
    labels: NDArray[np.int64]
    """[n]: the class that each image should show."""
    predictions: NDArray[np.int64]
    """[n]."""

    @property
    def accuracy(self) -> float:
        """Share of images that the classifier takes for what they should show."""
        return float((self.labels == self.predictions).mean())

    def class_accuracy(self, classes: Sequence[str]) -> dict[str, float]:
        """The same by class, for those that occur."""
        right = self.labels == self.predictions
        found = [(name, right[self.labels == i]) for i, name in enumerate(classes)]
        return {name: float(part.mean()) for name, part in found if len(part)}


@torch.no_grad()
def judge(classifier: Classifier, batches: Iterable[tuple[Tensor, Tensor]]) -> Judged:
    """Show (uint8 images [n, C, r, r], labels [n]) to `classifier`, in fp32. Raises ValueError if there are none."""
    device = next(classifier.parameters()).device
    features, labels, predictions = [], [], []
    for images, wanted in batches:
        found = classifier.features(images.to(device))
        features.append(found.double().cpu())
        predictions.append(classifier.head(found).argmax(1).cpu())
        labels.append(wanted)
    if not features:
        raise ValueError("no images to judge")
    return Judged(torch.cat(features).numpy(), torch.cat(labels).numpy(), torch.cat(predictions).numpy())


def sample_batches(
    generator: Generator, num_classes: int, count: int, *, seed: int, truncation: float | None
) -> Iterator[tuple[Tensor, Tensor]]:
    """`count` samples with the classes in turn, as (uint8 [n, C, r, r], labels [n])."""
    labels = torch.arange(count) % num_classes
    images = generate(generator, labels, seed=seed, truncation=truncation)
    yield from zip(images.split(BATCH), labels.split(BATCH), strict=True)


def frechet_distance(a: Floats, b: Floats) -> float:
    """Fréchet distance of Gaussians fitted to features a [n, d] and b [m, d] (Heusel et al. 2017, eq. 6), in float64.

    The trace of sqrt(S T) is the sum of the roots of the eigenvalues of R T R, R = sqrt(S): symmetric, hence real
    and accurate even where a covariance is singular, which scipy's sqrtm(S @ T) is not. Raises ValueError for features
    that are not finite or fewer than 2 rows.
    """
    for x in (a, b):
        if len(x) < 2 or not np.isfinite(x).all():
            raise ValueError(f"features must be finite, 2 rows at least; got shape {x.shape}")
    s, t = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    values, vectors = np.linalg.eigh(s)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    trace_of_root = np.sqrt(np.linalg.eigvalsh(root @ t @ root).clip(0)).sum()
    return float(np.square(a.mean(0) - b.mean(0)).sum() + np.trace(s) + np.trace(t) - 2 * trace_of_root)
