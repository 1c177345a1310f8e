"""Sheets of samples: classes as columns, random classes, interpolations, truncations."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from model.latents import RandomStream, random_labels
from model.sampling import draw, generate, walks
from pipeline.generation.image_models import OpenModel, batches, load
from pipeline.generation.load import parse_truncation
from pipeline.generation.sample_request import COLUMNS, ROWS, STEPS, TRUNCATIONS, Layout, SampleRequest, choose


@dataclass(frozen=True)
class Sheet:
    """Images to be shown together."""

    images: Tensor
    """uint8 [rows * columns, C, r, r]."""
    columns: int
    what: str
    """A line about them."""


def class_sheet(request: SampleRequest, open_model: OpenModel) -> Sheet:
    """Return a sheet with a class in each column."""
    model = open_model(request)
    rows, columns = request.per_class or ROWS, choose(request.classes, model.classes)
    images = torch.cat(list(model.draw(torch.tensor(columns).repeat(rows))))
    named = ", ".join(model.classes[i] for i in columns)
    return Sheet(images, len(columns), f"{rows} x {len(columns)} images, columns {named}")


def random_sheet(request: SampleRequest, open_model: OpenModel) -> Sheet:
    """Return a sheet of random classes."""
    model = open_model(request)
    rows, chosen = request.per_class or ROWS, choose(request.classes, model.classes, len(model.classes))
    images = torch.cat(list(model.draw(random_choices(chosen, rows * COLUMNS, request.seed))))
    return Sheet(images, COLUMNS, f"{rows} x {COLUMNS} images of random classes")


def interpolation_sheet(request: SampleRequest, open_model: OpenModel) -> Sheet:
    """Return a sheet whose rows lead from one image to another; of weights that are here."""
    trained = load(request, request.truncation)
    rows, steps = request.per_class or ROWS, request.steps or STEPS
    chosen = choose(request.classes, trained.classes)
    labels = torch.tensor(chosen)[torch.arange(2 * rows) % len(chosen)]
    method = request.truncation_method or trained.method
    z, weights = walks(trained.generator, labels, steps, seed=request.seed, truncation=request.truncation, method=method)
    parts = (slice(start, start + request.batch) for start in batches(len(z), request.batch))
    images = torch.cat([draw(trained.generator, z[part], weights[part]) for part in parts])
    return Sheet(images, steps, f"{rows} x {steps} images, each row from one image to another")


def truncation_sheet(request: SampleRequest, open_model: OpenModel) -> Sheet:
    """Return a sheet whose rows are truncated differently; of weights that are here."""
    texts = (request.truncations or TRUNCATIONS).split(",")
    rows = [parse_truncation(text, "--truncations") for text in texts]
    trained = load(request, rows[0])
    method = request.truncation_method or trained.method
    columns, images = choose(request.classes, trained.classes), []
    for row in batches(len(rows), 1, "row"):
        if row:
            trained.prepare(rows[row], method, request.standing)
        like = partial(generate, trained.generator, truncation=rows[row], method=method, batch=request.batch)
        images.append(like(torch.tensor(columns), seed=request.seed))
    named = ", ".join(trained.classes[i] for i in columns)
    return Sheet(torch.cat(images), len(columns), f"rows of truncation {', '.join(texts)}, columns {named}")


SHEETS: dict[Layout, Callable[[SampleRequest, OpenModel], Sheet]] = {
    "classes": class_sheet,
    "grid": random_sheet,
    "interpolation": interpolation_sheet,
    "truncation": truncation_sheet,
}


def random_choices(chosen: list[int], count: int, seed: int) -> Tensor:
    """Return `count` labels [n] int64 out of `chosen`, the same for the same seed."""
    return torch.tensor(chosen)[random_labels(seed, RandomStream.SAMPLES, 0, count, len(chosen))]
