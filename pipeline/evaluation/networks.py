"""A network that looks at images for `biggan evaluate`, with all that stands before it: resizing, scaling, a third channel."""

import re
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.errors import ConfigError
from pipeline.evaluation.classifier import Classifier
from pipeline.evaluation.extractors import PRETRAINED

_LEAST = 75
"""Pixels below which Inception's layers have nothing left."""


@dataclass(frozen=True, kw_only=True)
class Extractor:
    """A network and all that decides its answers."""

    name: str
    """In FID[name]."""
    sha256: str
    """Of its file of weights."""
    resizer: str
    """`none`, or a name of `resizer` with the size."""
    network: nn.Module
    """uint8 images [n, C, r, r] -> features [n, d] and logits [n, K], fp32. In eval mode."""
    judge: bool = False
    """Whether the logits are those of the dataset's own classes."""
    grey: bool = False
    """Whether images have one channel, which a network for colour sees three times."""


def from_judge(name: str, sha256: str, classifier: Classifier) -> Extractor:
    """The classifier that was trained on the dataset itself."""
    return Extractor(name=name, sha256=sha256, resizer="none", network=_Judge(classifier).eval(), judge=True)


def pretrained(name: str, channels: int, resizer: str | None, weights: str | None, sha256: str | None) -> Extractor:
    """A network of `PRETRAINED` for images of `channels`; `weights` (path or URI) and their hash where it takes them.

    Raises ConfigError for weights that are missing, of another network or of another hash, or a resizer that does not exist.
    """
    entry = PRETRAINED[name]
    network, found = entry.load(weights, sha256)
    chosen = resizer or entry.resizer
    how, size = parse_resizer(chosen)
    network = _Resized(network.eval().requires_grad_(False), how, size, entry.shift, entry.scale)
    return Extractor(name=name, sha256=found, resizer=chosen, network=network.eval(), grey=channels == 1)


def parse_resizer(text: str) -> tuple[str, int]:
    """`clean-224` -> its name and pixels. Raises ConfigError."""
    match = re.fullmatch(f"({'|'.join(RESIZERS)})-([0-9]+)", text)
    if not match or int(match[2]) < _LEAST:
        raise ConfigError(f"--resizer {text}: must be {' or '.join(f'{name}-PIXELS' for name in RESIZERS)}, {_LEAST} at least")
    return match[1], int(match[2])


class _Judge(nn.Module):
    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.classifier.features(images)
        return features, self.classifier.head(features)


class _Resized(nn.Module):
    """Puts resizing, scaling and a third channel in front of a network for colour images."""

    def __init__(self, network: nn.Module, resizer: str, size: int, shift: float, scale: float) -> None:
        super().__init__()
        self.network, self.resizer, self.size, self.shift, self.scale = network, resizer, size, shift, scale

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        resized = RESIZERS[self.resizer](images.float(), self.size).expand(-1, 3, -1, -1)
        return self.network((resized - self.shift) / self.scale)


def clean(x: Tensor, size: int) -> Tensor:
    """Bicubic with antialiasing, fp32 [n, C, h, w] in 0..255 -> [n, C, size, size], as Pillow does it on floats.

    What clean-fid takes (Parmar et al., arXiv 2104.11222): no rounding behind it, values cut to 0..255.
    """
    return F.interpolate(x, (size, size), mode="bicubic", antialias=True, align_corners=False).clamp(0, 255)


def tf1_bilinear(x: Tensor, size: int) -> Tensor:
    """Bilinear as TensorFlow 1 does it, fp32 [n, C, h, w] -> [n, C, size, size]: pixel i at i h / size, no antialiasing."""
    for dim in (2, 3):
        length = x.shape[dim]
        # The reference multiplies by a factor in fp32, which decides between two pixels where a place is a whole number.
        places = torch.arange(size, dtype=torch.float32, device=x.device) * (length / size)
        low = places.long().clamp(max=length - 1)
        share = (places - low).view([-1 if d == dim else 1 for d in range(4)])
        x = x.index_select(dim, low).lerp(x.index_select(dim, (low + 1).clamp(max=length - 1)), share)
    return x


RESIZERS: dict[str, Callable[[Tensor, int], Tensor]] = {"clean": clean, "tf1-bilinear": tf1_bilinear}
