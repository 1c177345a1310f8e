"""Models that draw for `biggan sample`: our own code, or that of a registered model, whose answers are pictures."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from model.sampling import generate
from pipeline.errors import DataError
from pipeline.generation.client import MOST_ROWS, Client
from pipeline.generation.load import TrainedGenerator, load_generator
from pipeline.generation.sample_request import SampleRequest
from pipeline.images.pillow import DRAWN, open_image
from pipeline.untrusted import parsing

Ask = Callable[..., Sequence[bytes]]
"""(class ids, seed=, max_batch=, truncation=, start=) -> a picture for each."""


@dataclass(frozen=True)
class ImageModel:
    """What draws, wherever its weights are."""

    classes: Sequence[str]
    """Names by label."""
    draw: Callable[[Tensor], Iterator[Tensor]]
    """Labels [n] -> images uint8 [m, C, r, r] in batches; image i is sample i of the seed."""


OpenModel = Callable[[SampleRequest], ImageModel]


def batches(count: int, batch: int, unit: str = "img") -> Iterator[int]:
    """Yield where each batch starts; a bar on a terminal if there are several."""
    from tqdm import tqdm

    with tqdm(total=count, unit=unit, disable=None if count > batch else True) as bar:
        for start in range(0, count, batch):
            yield start
            bar.update(min(batch, count - start))


def load(request: SampleRequest, truncation: float | None) -> TrainedGenerator:
    """Return the generator asked for, with statistics for `truncation`."""
    return load_generator(request.model, request.checkpoint, truncation, request.truncation_method, request.standing)


def open_own(request: SampleRequest) -> ImageModel:
    """Open a run, a checkpoint or an exported model. Raises as `load_generator` does."""
    trained, batch = load(request, request.truncation), request.batch
    method = request.truncation_method or trained.method

    def draw(labels: Tensor) -> Iterator[Tensor]:
        like = partial(generate, trained.generator, seed=request.seed, truncation=request.truncation, method=method)
        for start in batches(len(labels), batch):
            yield like(labels[start : start + batch], start=start, batch=batch)

    return ImageModel(trained.classes, draw)


def open_server(request: SampleRequest) -> ImageModel:
    """Open what `mlflow models serve` serves. Raises as `Client` does."""
    server = Client(request.model)
    return asked_for_pictures(request, server.about["classes"], server.sample)


def asked_for_pictures(request: SampleRequest, classes: Sequence[str], ask: Ask, at_once: bool = False) -> ImageModel:
    """Return a model that draws through its own code; with `at_once`, all images of a call are one request.

    Its statistics are those of untruncated latents. Drawing raises DataError for answers that are no pictures alike.
    """
    batch = min(request.batch, MOST_ROWS)
    params: dict[str, Any] = {"seed": request.seed, "max_batch": batch}
    params |= {} if request.truncation is None else {"truncation": request.truncation}
    step = 1 << 62 if at_once else batch

    def draw(labels: Tensor) -> Iterator[Tensor]:
        form: tuple[int, ...] = ()
        for first in batches(len(labels), step):
            pictures = ask(labels[first : first + step].tolist(), **params, start=first)
            with parsing(f"{request.model}: a picture that it has drawn", "serve the model anew"):
                pixels = np.stack([np.atleast_3d(np.asarray(open_image(picture, DRAWN))) for picture in pictures])
            form = form or pixels.shape[1:]
            if pixels.dtype != np.uint8 or pixels.shape[1:] != form or form[0] != form[1] or form[2] not in (1, 3):
                raise DataError(f"{request.model} draws {pixels.dtype} images of {form} and {pixels.shape[1:]}: serve it anew")
            yield from torch.from_numpy(pixels).permute(0, 3, 1, 2).split(request.batch)

    return ImageModel(classes, draw)
