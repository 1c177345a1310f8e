"""Documents of evaluations that nobody has carried out."""

from typing import Any

from pipeline.runs.evaluation_document import Document, ExtractorId, RealFigures, Recipe, Reference


def make_document(metrics: dict[str, float], **changes: Any) -> Document:
    """An evaluation by 10,000 samples of a checkpoint at 1,000 images, with these metrics."""
    samples, truncation = changes.get("samples", 10_000), changes.get("truncation")
    recipe = Recipe(
        version=1,
        extractor=ExtractorId("x", "0" * 64),
        resizer="none",
        crop=None,
        resolution=32,
        grey=None,
        samples=samples,
        truncation=truncation,
        truncation_method=None if truncation is None else "truncated-normal",
        standing=2048,
        reference=Reference("f" * 32, 9000, "test"),
    )
    given: dict[str, Any] = {
        "run": "runs/one",
        "images": 1000,
        "weights_sha256": "w",
        "samples": samples,
        "seed": 0,
        "truncation": truncation,
        "metrics": metrics,
        "spread": {},
        "floor": {},
        "class_intra_fid": {},
        "real": RealFigures(test_images=9000),
        "left_out": {},
        "recipe": recipe,
        "recipe_id": recipe.id,
    }
    return Document(**given | changes)
