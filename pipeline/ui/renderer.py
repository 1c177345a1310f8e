"""Single samples and walks on request, from a generator of ours or a registered model's own code."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

import model.sampling
from model.biggan import class_weights
from model.latents import RandomStream, Truncation, interpolated, latents
from pipeline.generation.load import TrainedGenerator

BATCH = 64
"""Images at once, as in `biggan sample`, whose samples are the same bytes: sums of another batch may round differently."""

_KEPT = 64  # truncations whose statistics stay in memory; those of one are a few hundred kB


@dataclass(frozen=True)
class Point:
    """A sample by its name: number `index` of `seed`, as an image of class `label`."""

    label: int
    seed: int
    index: int = 0


class Renderer:
    """Draws for several threads, one at a time.

    Args:
        generator: in eval mode, with statistics of latents that are not truncated.
        sampling: `model.sampling`, or the copy of it that belongs to the generator.
        classes: names by label.
        images: real images that D had seen.
        weights_sha256: of the generator.
        prepare: gives the generator the statistics of a truncation; None: it has one kind of them for all.
        method: how latents are truncated.
    """

    def __init__(
        self,
        generator: Any,
        sampling: ModuleType,
        *,
        classes: tuple[str, ...],
        images: int,
        weights_sha256: str,
        prepare: Callable[[float | None], None] | None,
        method: Truncation = "truncated-normal",
    ) -> None:
        self.classes, self.images, self.weights_sha256 = classes, images, weights_sha256
        self.config = generator.config
        self._generator, self._sampling, self._prepare = generator, sampling, prepare
        self._method: Truncation = method
        # The `sampling` of a registered model may be older than the choice of a method.
        self._options = {} if method == "truncated-normal" else {"method": method}
        self._lock = threading.Lock()
        self._truncation: float | None = None
        self._statistics: dict[float | None, dict[str, Tensor]] = {None: self._buffers()}

    def samples(self, labels: list[int], seed: int, truncation: float | None) -> Tensor:
        """Images uint8 [n, C, r, r] of samples 0 .. n - 1."""
        return self._generate(torch.tensor(labels), seed, 0, truncation)

    def sample(self, point: Point, truncation: float | None) -> Tensor:
        """Image uint8 [C, r, r]."""
        return self._generate(torch.tensor([point.label]), point.seed, point.index, truncation)[0]

    def walk(self, start: Point, end: Point, steps: int, truncation: float | None) -> Tensor:
        """From one sample to another, both included: images uint8 [steps, C, r, r]. See `model.sampling.walks`."""
        dim, classes = self.config.latent_dim, self.config.num_classes
        a, b = (
            latents(p.seed, RandomStream.SAMPLES, p.index, 1, dim=dim, truncation=truncation, method=self._method)
            for p in (start, end)
        )
        from_weights, to_weights = class_weights(torch.tensor([start.label, end.label]), classes)
        t = torch.linspace(0, 1, steps)[:, None]
        with self._lock:
            self._stand(truncation)
            weights = (1 - t) * from_weights + t * to_weights
            return self._sampling.draw(self._generator, interpolated(a, b, steps), weights, BATCH)

    def close(self) -> None:
        """Wait for what is being drawn: a thread inside torch when the interpreter ends aborts the process."""
        self._lock.acquire()

    def _generate(self, labels: Tensor, seed: int, start: int, truncation: float | None) -> Tensor:
        with self._lock:
            self._stand(truncation)
            options = {"seed": seed, "start": start, "truncation": truncation, "batch": BATCH} | self._options
            return self._sampling.generate(self._generator, labels, **options)

    def _stand(self, truncation: float | None) -> None:
        if truncation == self._truncation or self._prepare is None:
            return
        if known := self._statistics.get(truncation):
            for name, buffer in self._generator.named_buffers():
                buffer.copy_(known[name])
        else:
            try:
                self._prepare(truncation)
            finally:
                self._generator.eval()  # where it fails, as for want of memory, the statistics are still those of before
            self._statistics[truncation] = self._buffers()
            if len(self._statistics) > _KEPT:
                del self._statistics[next(key for key in self._statistics if key is not None)]
        self._truncation = truncation

    def _buffers(self) -> dict[str, Tensor]:
        return {name: buffer.clone() for name, buffer in self._generator.named_buffers()}


def painter_of(trained: TrainedGenerator, standing: int | None = None) -> Renderer:
    """Draws what `biggan sample` does with a run, a checkpoint or an exported model's folder."""
    return Renderer(
        trained.generator,
        model.sampling,
        classes=trained.classes,
        images=trained.images,
        weights_sha256=trained.weights_sha256,
        prepare=lambda truncation: trained.prepare(truncation, trained.method, standing),
        method=trained.method,
    )


def registered_painter(python_model: Any, images: int, weights_sha256: str) -> Renderer:
    """Draws what `biggan sample` does with `models:/...`: by the model's own code, with statistics of no truncation."""
    return Renderer(
        python_model.generator,
        python_model.sampling,
        classes=tuple(python_model.classes),
        images=images,
        weights_sha256=weights_sha256,
        prepare=None,
    )
