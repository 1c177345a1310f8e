"""How a request for samples is carried out: a sheet, or a set of images in batches."""

from pathlib import Path

import torch

from pipeline.generation import sample_files
from pipeline.generation.image_models import OpenModel
from pipeline.generation.layouts import SHEETS, random_choices
from pipeline.generation.sample_request import SampleRequest, choose


def write(request: SampleRequest, open_model: OpenModel) -> tuple[int, str]:
    """Draw the samples and write them; returns how many, and a line about them. The request has been checked."""
    if request.kind != "sheet":
        return _write_set(request, open_model)
    sheet = SHEETS[request.layout](request, open_model)
    sample_files.write_sheet(request.out, sheet.images, sheet.columns)
    return len(sheet.images), sheet.what


def _write_set(request: SampleRequest, open_model: OpenModel) -> tuple[int, str]:
    """`count` images, never more than a batch of them in memory."""
    model, count = open_model(request), request.count or 0
    chosen = choose(request.classes, model.classes, len(model.classes))
    in_turn = torch.tensor(chosen)[torch.arange(count) % len(chosen)]
    labels = random_choices(chosen, count, request.seed) if request.layout == "grid" else in_turn
    images = (part.permute(0, 2, 3, 1).contiguous().numpy() for part in model.draw(labels))
    parts = zip(images, (part.numpy() for part in labels.split(request.batch)), strict=True)
    if request.kind == "npz":
        sample_files.write_npz(Path(request.out), parts, count)
    elif request.kind == "folder":
        sample_files.write_folder(request.out, parts, model.classes, request.format or "png")
    else:
        sample_files.write_sample_shards(request.out, parts, model.classes)
    return count, f"{count:,} images of {len(chosen)} classes"
