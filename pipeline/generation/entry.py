"""What `biggan sample` and a notebook call. Importing it costs nothing: torch waits for the call."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from model.latents import Truncation
    from pipeline.generation.image_models import OpenModel
    from pipeline.generation.sample_request import Layout, SampleRequest


@dataclass(frozen=True)
class Written:
    """Samples that are in files now."""

    out: str
    images: int
    what: str
    """A line about them: rows, columns, classes."""


def sample(
    model: str | Path,
    out: str | Path,
    *,
    layout: "Layout" = "classes",
    classes: str | None = None,
    seed: int = 0,
    truncation: float | None = None,
    truncation_method: "Truncation | None" = None,
    truncations: str | None = None,
    per_class: int | None = None,
    steps: int | None = None,
    count: int | None = None,
    format: str | None = None,
    batch: int = 64,
    standing: int | None = None,
    checkpoint: int | None = None,
    open_registered: "OpenModel | None" = None,
) -> Written:
    """Draw samples of `model` and write them to `out`: a sheet (NAME.png, NAME.webp) or a set (NAME.npz, FOLDER/).

    `model` is a run's folder, a checkpoint or a folder of them, an exported model, or the address of a model server; also
    models:/NAME@ALIAS, if `open_registered` opens it (`pipeline.registry.registered_images.opener`).
    A set has `count` images; a folder, whose name ends in / where it is new, holds them as `format`: png, webp or shards.

    `layout` of a sheet: classes as columns, `grid` of random ones, `interpolation` with `steps` columns, or `truncation` with
    a row for each of `truncations`. `classes` are names or numbers, and `truncations` numbers or none, with commas between.
    A sheet has `per_class` rows. What is None has the default of the command.

    `seed` says which latents, `truncation` by `truncation_method` how near to 0 they are; None for all of the normal.
    Of weights that are here, `checkpoint` names one by its images, and `standing` samples give batch-norm statistics.
    `batch` images are drawn at once.

    Raises ConfigError for what makes no sense or is not there, DataError for damage, StorageError if a server does not answer.
    """
    from pipeline.generation.sample_request import SampleRequest, check

    asked = {name: value for name, value in locals().items() if name in {field.name for field in fields(SampleRequest)}}
    request = SampleRequest(**asked | {"model": str(model), "out": str(out)})
    check(request)
    from pipeline.generation.carry_out import write

    images, what = write(request, _opener(request, open_registered))
    return Written(request.out, images, what)


def _opener(request: "SampleRequest", open_registered: "OpenModel | None") -> "OpenModel":
    from pipeline.errors import ConfigError
    from pipeline.generation.image_models import open_own, open_server
    from pipeline.generation.model_address import is_registered

    if is_registered(request.model):
        if open_registered is None:
            raise ConfigError(
                f"MODEL {request.model} is registered: pass open_registered=pipeline.registry.registered_images.opener()"
            )
        return open_registered
    return open_own if request.is_ours else open_server
