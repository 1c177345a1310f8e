"""What an extractor says of real images, computed once and kept beside their shards.

It is found again only by its whole recipe: the extractor and its weights, resizing, crop, resolution, how many images, and
the fingerprint of the shards.
"""

import hashlib
import json
from collections.abc import Callable
from typing import Any

import safetensors.torch
import torch
from typing_extensions import TypedDict

from pipeline import storage
from pipeline.errors import ConfigError, DataError
from pipeline.evaluation.measure import Judged, Real
from pipeline.evaluation.networks import Extractor
from pipeline.storage.addresses import is_web
from pipeline.untrusted import parse, parsing
from pipeline.wording import plural

FOLDER = "evaluation"
"""Below a split's folder."""

_VERSION = 1
"""Of what is kept, and of the order that says which images are the first."""


Say = Callable[[str], None]


def reference_recipe(extractor: Extractor, images: Real) -> dict[str, Any]:
    """All that decides the features of `images`."""
    side, _, channels = images.config.shape(images.manifest)
    return {
        "version": _VERSION,
        "extractor": {"name": extractor.name, "sha256": extractor.sha256}
        if not extractor.judge
        else {"sha256": extractor.sha256},
        "resizer": extractor.resizer,
        "crop": images.config.crop,
        "resolution": side,
        "channels": channels,
        "images": images.count,
        "fingerprint": images.manifest.fingerprint,
    }


class _Notes(TypedDict):
    """What is written beside features that are kept."""

    recipe: dict[str, Any]
    sha256: str
    inception_score: tuple[float, float] | None


def obtain(extractor: Extractor, images: Real, cache: str, compute: Callable[[], Judged], say: Say) -> Judged:
    """What `extractor` says of `images`: kept beside the shards or in the folder `cache`, else computed now and kept.

    It goes to `cache` where the shards' place may not be written. Raises DataError if what is kept is damaged.
    """
    wanted = reference_recipe(extractor, images)
    key = hashlib.sha256(json.dumps(wanted, sort_keys=True).encode()).hexdigest()[:16]
    beside = storage.join(images.config.uri, FOLDER)
    for folder in (beside, cache):
        if (found := _load(folder, key, wanted)) is not None:
            return found
    say(f"{extractor.name} looks at {plural(images.count, 'image')} of {images.config.uri}")
    made = compute()
    folder = _save(beside, cache, key, recipe=wanted, made=made, say=say)
    # Read back even when it is new: the same figures then come out the second time, to the last digit.
    read = _load(folder, key, wanted)
    if read is None:
        raise DataError(f"{_notes(folder, key)} is gone although it was just written: run the same command again")
    return read


def _load(folder: str, key: str, wanted: dict[str, Any]) -> Judged | None:
    notes = _notes(folder, key)
    try:
        if not storage.exists(notes):
            return None
    except storage.RefusedError:  # what a store says of an object that is not there to those who may not list
        return None
    place = _place(folder, key)
    advice = f"delete it and {notes}, then run the same command again"
    known = parse(_Notes, storage.read_bytes(notes), notes, "delete it, then run the same command again")
    data = storage.read_bytes(place)
    if known["recipe"] != wanted or hashlib.sha256(data).hexdigest() != known["sha256"]:
        raise DataError(f"{place} is damaged: {advice}")
    with parsing(f"{place} is damaged", advice):
        tensors = safetensors.torch.load(data)
        features, labels, predictions = (tensors[name] for name in ("features", "labels", "predictions"))
    classes = all(tensor.dtype == torch.int64 and tensor.shape == features.shape[:1] for tensor in (labels, predictions))
    if not classes or features.dim() != 2 or not features.is_floating_point():
        raise DataError(f"{place} does not hold features and classes of images: {advice}")
    return Judged(features, labels, predictions, known["inception_score"])


def _save(beside: str, cache: str, key: str, recipe: dict[str, Any], made: Judged, say: Say) -> str:
    """Returns where."""
    tensors = {name: getattr(made, name).contiguous() for name in ("features", "labels", "predictions")}
    data = safetensors.torch.save(tensors)
    notes = {"recipe": recipe, "sha256": hashlib.sha256(data).hexdigest(), "inception_score": made.score}
    folder = cache if is_web(beside) else beside
    try:
        storage.write_bytes(_place(folder, key), data)
    except ConfigError as error:
        if folder == cache:
            raise
        say(f"kept in {cache} instead: {error}")
        folder = cache
        storage.write_bytes(_place(folder, key), data)
    storage.write_bytes(_notes(folder, key), json.dumps(notes, indent=1).encode())  # last: without it the rest does not count
    return folder


def _place(folder: str, key: str) -> str:
    return storage.join(folder, f"features-{key}.safetensors")


def _notes(folder: str, key: str) -> str:
    return storage.join(folder, f"features-{key}.json")
