"""The document of an evaluation, RUN/evaluation/IMAGES.json: what `biggan evaluate` says of one set of weights.

The order of the fields is that of the file's keys. A field with the default None is left out of the file where it is None.
"""

import hashlib
import json
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any

from pipeline.redaction import hidden


@dataclass(frozen=True)
class ExtractorId:
    """Which network has looked."""

    name: str
    sha256: str


@dataclass(frozen=True)
class Reference:
    """The real images that samples are compared with."""

    fingerprint: str
    images: int
    split: str


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All that decides what figures mean."""

    version: int
    """Of how they are computed (`pipeline.evaluation.metrics`)."""
    extractor: ExtractorId
    resizer: str
    crop: int | None
    resolution: int
    grey: str | None
    samples: int
    truncation: float | None
    truncation_method: str | None
    standing: int | str
    """Samples that batch-norm statistics are taken over, or `recorded`: those that came with imported weights."""
    reference: Reference

    @property
    def id(self) -> str:
        """16 hex digits: figures of equal ids may be compared, and no others."""
        canonical = json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]


@dataclass(frozen=True, kw_only=True)
class RealFigures:
    """What is said of the real images."""

    test_images: int
    training_images: int | None = None
    test_accuracy: float | None = None
    test_class_accuracy: dict[str, float] | None = None


@dataclass(frozen=True, kw_only=True)
class JudgeFile:
    """The classifier that has judged, and where it is kept."""

    file: str
    key: str
    seconds: float
    train: str
    test: str


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """What was evaluated."""

    run: str
    images: int
    weights_sha256: str
    samples: int
    seed: int
    truncation: float | None


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What was found, by full name as in FID[inception]."""

    metrics: dict[str, float]
    spread: dict[str, float]
    floor: dict[str, float]
    """Of real images in the place of samples, as many of them."""
    class_intra_fid: dict[str, float]
    real: RealFigures
    accuracy: float | None = None
    class_accuracy: dict[str, float] | None = None
    worst_class: str | None = None

    @property
    def fid(self) -> str:
        """The full name of the FID."""
        return next(name for name in self.metrics if name.startswith("FID["))


@dataclass(frozen=True, kw_only=True)
class Document(Figures, Evaluated):
    """All of it. Fields come in the order of `Evaluated`, `Figures` and these."""

    left_out: dict[str, str]
    """Why a figure is not there, by its name."""
    recipe: Recipe
    recipe_id: str
    judge: JudgeFile | None = None

    def as_json(self) -> dict[str, Any]:
        """Return the file's object, without secrets."""
        fid, document = self.fid, _given(self)
        real = _given(self.real)
        if self.real.training_images is not None and fid in self.floor:
            place = list(real).index("training_images") + 1
            items = list(real.items())
            real = dict([*items[:place], (f"{fid} of training images", self.floor[fid]), *items[place:]])
        found: dict[str, Any] = {}
        for key, value in document.items():
            if key == "real":  # `checkpoint.keep_best` goes by the FID and the accuracy at the top
                found[fid] = self.metrics[fid]
            found[key] = real if key == "real" else value
        shown: dict[str, Any] = hidden(found)
        return shown


def _given(node: Any) -> dict[str, Any]:
    plain = asdict(node)
    return {one.name: plain[one.name] for one in fields(node) if plain[one.name] is not None or one.default is MISSING}
