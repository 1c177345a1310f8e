"""The document of an evaluation, and what becomes of it: a table, a curve over truncations, rows in the run's MLflow run."""

import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from pipeline.evaluation.measure import DrawnSamples, Judged, Real, measure, too_few
from pipeline.evaluation.networks import Extractor
from pipeline.generation import load
from pipeline.generation.load import TrainedGenerator
from pipeline.runs.evaluation_document import Document, ExtractorId, Figures, RealFigures, Recipe, Reference
from pipeline.storage.run_lock import is_training
from pipeline.tracking.delivery import Delivery
from pipeline.tracking.journal import append_line, figures_path, journal_path, read_file
from pipeline.tracking.mlflow_errors import first_line
from pipeline.tracking.records import MetricsRecord, now
from pipeline.wording import plural

STANDARD_SAMPLES = 10_000
"""The default of `--samples`. Figures by as many have names in MLflow that do not say so."""

_VERSION = 1
"""Of how figures are computed (`pipeline.evaluation.metrics`): another one makes another recipe."""


def figures(
    extractor: Extractor,
    reference: str,
    real: Mapping[str, tuple[Real, Judged]],
    floor_of: Mapping[str, Judged],
    drawn: Judged,
    names: Sequence[str],
    classes: Sequence[str],
    device: torch.device,
) -> Figures:
    """Return what there is to say of samples `drawn` against the split `reference` of `real`.

    `floor_of` has the real images that stand in for samples, as many of them: their figures are the floor.
    """
    against = real[reference][1]
    found = measure(extractor.name, against, drawn, names, classes=classes, device=device)
    accuracy = f"accuracy[{extractor.name}]"
    test, floor = real["test"][1], {}
    for other in floor_of.values():
        enough = [name for name in names if not too_few(name, {"they": other.labels}, classes)]
        floor = measure(extractor.name, against, other, enough, classes=classes, device=device).values
    training = len(real["train"][1].labels) if "train" in real else None
    plain = Figures(
        metrics=found.values,
        spread=found.spread,
        floor=floor,
        class_intra_fid=found.by_class,
        real=RealFigures(test_images=len(test.labels), training_images=training),
    )
    if not extractor.judge:
        return plain
    by_class = drawn.class_accuracy(classes)
    return replace(
        plain,
        metrics={accuracy: drawn.accuracy} | found.values,
        floor={accuracy: test.accuracy} | floor,
        real=replace(plain.real, test_accuracy=test.accuracy, test_class_accuracy=test.class_accuracy(classes)),
        accuracy=drawn.accuracy,
        class_accuracy=by_class,
        worst_class=min(by_class, key=by_class.__getitem__),
    )


def recipe(
    extractor: Extractor, reference: str, images: Real, samples: DrawnSamples, trained: TrainedGenerator, standing: int | None
) -> Recipe:
    """Return all that decides what the figures mean."""
    recorded = "recorded" if trained.recorded is not None else load.STANDING_SAMPLES
    return Recipe(
        version=_VERSION,
        extractor=ExtractorId(extractor.name, extractor.sha256),
        resizer=extractor.resizer,
        crop=images.config.crop,
        resolution=trained.config.resolution,
        grey="three times" if extractor.grey else None,
        samples=samples.count,
        truncation=samples.truncation,
        truncation_method=None if samples.truncation is None else samples.method,
        standing=standing or recorded,
        reference=Reference(images.manifest.fingerprint, images.count, reference),
    )


def truncation_words(document: Document) -> str:
    """`no truncation` or `truncation 0.5`."""
    return "no truncation" if document.truncation is None else f"truncation {document.truncation:g}"


def table(document: Document) -> list[str]:
    """The figures for a person, as lines."""
    reference, images = document.recipe.reference, plural(document.images, "image")
    lines = [
        f"{document.run} at {images}, EMA, seed {document.seed}, {truncation_words(document)}",
        f"against {plural(reference.images, 'real ' + reference.split + ' image')}; recipe {document.recipe_id}",
        "",
        f"{'':28}  {plural(document.samples, 'sample'):>15}        real images",
    ]
    for name, value in document.metrics.items():
        floor, spread = document.floor.get(name), document.spread.get(name)
        noise = "" if spread is None else f" +- {_figure(name, spread)}"
        row = f"{name:28}  {_figure(name, value):>7}{noise:14}  {'' if floor is None else _figure(name, floor):>11}"
        lines.append(row.rstrip())
    lines += [f"left out: {reason}" for reason in document.left_out.values()]
    return lines + _class_table(document)


def _class_table(document: Document) -> list[str]:
    if document.class_accuracy is None:
        return []
    real, within = document.real.test_class_accuracy or {}, document.class_intra_fid
    width = max(map(len, document.class_accuracy))
    return [
        "",
        f"{'accuracy':{width}}  real test  samples" + ("  intra-FID" if within else ""),
        *(
            f"{name:{width}}  {real.get(name, float('nan')):9.1%}  {share:7.1%}"
            + (f"  {within[name]:9.2f}" if name in within else "")
            + ("  <- worst" if name == document.worst_class else "")
            for name, share in document.class_accuracy.items()
        ),
    ]


def _figure(name: str, value: float) -> str:
    """Write shares as percentages and all others with two decimals, but small KIDs with three digits."""
    kind = name.partition("[")[0]
    if kind in ("accuracy", "precision", "recall", "coverage"):
        return f"{value:.1%}"
    return f"{value:.3g}" if kind == "KID" and abs(value) < 1 else f"{value:.2f}"


def curve(documents: Sequence[Document]) -> bytes:
    """A PNG: FID over IS of documents that differ in truncation (BigGAN, figure 16); over truncation where there is no IS."""
    from matplotlib.figure import Figure

    fid = documents[0].fid
    score = fid.replace("FID", "IS", 1)
    scored = all(score in document.metrics for document in documents)
    # No truncation is the limit of large ones: it comes last.
    ordered = sorted(documents, key=lambda d: math.inf if d.truncation is None else d.truncation)
    names = ["none" if d.truncation is None else f"{d.truncation:g}" for d in ordered]
    y = [d.metrics[fid] for d in ordered]
    x = [d.metrics[score] for d in ordered] if scored else list(range(len(y)))
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(x, y, marker="o")
    if scored:
        for place in zip(names, x, y, strict=True):
            axes.annotate(place[0], place[1:], textcoords="offset points", xytext=(6, 6))
    else:
        axes.set_xticks(x, names)
    axes.set(xlabel=score if scored else "truncation", ylabel=fid)
    axes.set_title(f"{ordered[0].images:,} images, {ordered[0].samples:,} samples; truncations beside the points", fontsize=9)
    axes.grid(alpha=0.3)
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=150)
    return file.getvalue()


def tracked_names(document: Document, taken: Mapping[str, str] | None = None) -> dict[str, float]:
    """Return the metrics by their names in MLflow, such as `eval/FID/efflite0`.

    What a recipe has beside the standard one is part of the name, so that two recipes do not mix under one: a truncation
    (`/truncation-0.5`), other than 10,000 samples (`/samples-500`), another seed than 0 (`/seed-1`). `taken` are the names that
    have rows already, with the recipe of these: under another recipe they end in its id (`/recipe-1a2b3c4d`).
    """
    parts = [] if document.truncation is None else [f"truncation-{document.truncation:g}"]
    parts += [f"samples-{document.samples}"] if document.samples != STANDARD_SAMPLES else []
    parts += [f"seed-{document.seed}"] if document.seed else []
    recipe = document.recipe_id
    found: dict[str, float] = {}
    for name, value in document.metrics.items():
        key = "/".join(["eval", name.replace("[", "/").removesuffix("]"), *parts])
        if (taken or {}).get(key, recipe) != recipe:
            key += f"/recipe-{recipe[:8]}"
        found |= {key: value} if math.isfinite(value) else {}
    return found


def track(run: Path, document: Document, deliver: bool, say: Callable[[str], None]) -> None:
    """Put the metrics into the journal of the run's evaluations, at step `images`, once, and `deliver` them to MLflow.

    A training that holds the run delivers them with its own rows. An MLflow that is away is no failure: the journal keeps them.
    """
    if not journal_path(run).exists():
        return
    path, step = figures_path(run), document.images
    rows = [record for record, _ in read_file(path) if isinstance(record, MetricsRecord)]
    known = {item for record in rows if record.step == step for item in record.metrics.items()}
    taken = _taken(rows, document)
    if values := {key: value for key, value in tracked_names(document, taken).items() if (key, value) not in known}:
        append_line(path, MetricsRecord(time=now(), metrics=values, step=step, recipe=document.recipe_id))
    if deliver and not is_training(run):
        try:
            Delivery(run).deliver()
        except Exception as error:  # whatever a store, a proxy or a driver may raise
            say(f"MLflow does not take the figures, {path} keeps them: {first_line(error)}")


def _taken(rows: Sequence[MetricsRecord], document: Document) -> dict[str, str]:
    """Return the recipe that each name has rows of. Rows of an older version do not say theirs: at the document's step they
    are of the same recipe if they have the same value."""
    taken: dict[str, str] = {}
    plain = tracked_names(document)
    for record in rows:
        for key, value in record.metrics.items():
            recipe = record.recipe
            if recipe is None and record.step == document.images and plain.get(key, value) != value:
                recipe = "not known"
            if recipe:
                taken.setdefault(key, recipe)
    return taken
