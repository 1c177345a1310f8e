"""What an evaluation is asked for, and how it is carried out: extractor, real images, samples, figures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from model.latents import Truncation
from pipeline import storage
from pipeline.errors import ConfigError
from pipeline.evaluation import document
from pipeline.evaluation.extractors import PRETRAINED
from pipeline.evaluation.measure import OPTIONAL, DrawnSamples, Judged, Real, extract, too_few
from pipeline.evaluation.networks import Extractor
from pipeline.evaluation.splits import Split
from pipeline.evaluation.worker_pool import WorkerPool
from pipeline.generation.load import TrainedGenerator
from pipeline.runs.evaluation_document import Document, JudgeFile
from pipeline.runs.evaluations import Evaluation


@dataclass(frozen=True, kw_only=True)
class EvaluationRequest:
    """What `pipeline.evaluation.evaluate` is asked for; it says what each means."""

    model: str
    checkpoint: int | None
    train: str | None
    test: str | None
    reference: str
    crop: int | None
    samples: int
    real: int | None
    seed: int
    truncations: Sequence[float | None]
    truncation_method: Truncation | None
    standing: int | None
    metrics: str | None
    extractor: str | None
    weights: str | None
    weights_sha256: str | None
    resizer: str | None
    cache: str | None
    processes: int | None
    batch: int

    @property
    def cache_folder(self) -> str:
        """Where the judge is kept."""
        return self.cache or storage.join(self.model, "evaluation")

    def place(self, images: int, truncation: float | None) -> str:
        """Return where a document goes, unless one of more samples is there (see `pipeline.runs.evaluations`)."""
        name = f"-{self.extractor}" if self.extractor in PRETRAINED else ""
        cut = "" if truncation is None else f"-truncation-{truncation:g}"
        return storage.join(self.model, "evaluation", f"{images:010d}{name}{cut}.json")

    def count(self, name: str, split: Split) -> int:
        """Return how many images of the split `name` to look at.

        `real` limits the reference alone: images of the other split stand in for the samples, and are as many.
        """
        return min(self.real if self.real and name == self.reference else self.samples, split.manifest.samples)

    def is_answered_by(self, known: Evaluation, truncation: float | None, splits: Mapping[str, Split]) -> bool:
        """Say whether `known` was made by the recipe asked for, as far as that shows before any work."""
        split, name = splits[self.reference], known.recipe["extractor"]["name"]
        images = {"fingerprint": split.manifest.fingerprint, "images": self.count(self.reference, split)}
        wanted: dict[str, Any] = {"samples": self.samples, "truncation": truncation}
        wanted |= {"reference": images | {"split": self.reference}}
        wanted |= {"truncation_method": None if truncation is None else self.truncation_method}
        wanted |= {key: value for key in ("standing", "resizer", "crop") if (value := getattr(self, key))}
        same = all(known.recipe.get(key) == value for key, value in wanted.items()) and known.seed == self.seed
        return same and (name == self.extractor if self.extractor else name.startswith("clf-"))


def make_document(
    request: EvaluationRequest,
    truncation: float | None,
    trained: TrainedGenerator,
    extractor: Extractor,
    judge: JudgeFile | None,
    real: Mapping[str, tuple[Real, Judged]],
    peers: WorkerPool,
) -> Document:
    """Draw the samples, look at them and compute all figures."""
    sets = sampled(request, trained) | {f"the real {request.reference} images": real[request.reference][1].labels}
    names, left_out = figures_to_compute(request, sets, trained.classes)
    method, classes = request.truncation_method or trained.method, trained.classes
    samples = DrawnSamples(
        generator=trained.generator,
        num_classes=len(classes),
        count=request.samples,
        seed=request.seed,
        truncation=truncation,
        method=method,
    )
    drawn = extract(peers, extractor, samples, request.batch)
    for name, (images, _) in real.items():
        if name != request.reference and images.count < request.samples:
            left_out["floor"] = (
                f"figures of real images need as many {name} images as samples; there are {images.count:,}: "
                f"pass --samples {images.count}"
            )
    floor = {} if "floor" in left_out else {name: judged for name, (_, judged) in real.items() if name != request.reference}
    figures = document.figures(
        extractor, request.reference, real, floor_of=floor, drawn=drawn, names=names, classes=classes, device=peers.device
    )
    against = real[request.reference][0]
    recipe = document.recipe(
        extractor, request.reference, images=against, samples=samples, trained=trained, standing=request.standing
    )
    return Document(
        run=request.model,
        images=trained.images,
        weights_sha256=trained.weights_sha256,
        samples=request.samples,
        seed=request.seed,
        truncation=truncation,
        **vars(figures),
        left_out=left_out,
        recipe=recipe,
        recipe_id=recipe.id,
        judge=judge,
    )


def sampled(request: EvaluationRequest, trained: TrainedGenerator) -> dict[str, Tensor]:
    """Return the labels of the samples."""
    return {"the samples": torch.arange(request.samples) % len(trained.classes)}


def figures_to_compute(
    request: EvaluationRequest, sets: Mapping[str, Tensor], classes: Sequence[str]
) -> tuple[list[str], dict[str, str]]:
    """Return the figures to compute besides FID from `sets` of images with these labels, and why others are left out.

    Raises ConfigError for one that was asked for.
    """
    asked = request.metrics.split(",") if request.metrics else list(OPTIONAL)
    left_out = {name: reason for name in asked if (reason := too_few(name, sets, classes))}
    if request.metrics and left_out:
        name, reason = next(iter(left_out.items()))
        raise ConfigError(f"--metrics {name}: {reason}: pass a larger --samples, or leave it out")
    return [name for name in asked if name not in left_out], left_out
