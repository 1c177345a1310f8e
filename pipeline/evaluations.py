"""What `biggan evaluate` has found out about weights, as the registry takes it: figures, and the recipe they were made by."""

import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import ConfigError

TAG = "evaluation"
"""Of a version in the registry: JSON with the three keys of `_KEYS`."""
_KEYS = ("metrics", "recipe", "recipe_id")


@dataclass(frozen=True)
class Evaluation:
    """Figures of one set of weights. Those of two recipes must not be compared."""

    metrics: dict[str, float]
    """By full name, as in FID[inception]."""
    recipe: dict[str, Any]
    """Extractor, reference, number of samples, truncation, ..."""
    recipe_id: str
    """16 hex digits; equal for figures that can be compared."""
    images: int = 0
    """Which checkpoint."""
    weights_sha256: str = ""
    place: str = ""
    """The file that it is from."""

    def as_tag(self) -> str:
        """The value of the tag."""
        return json.dumps({key: getattr(self, key) for key in _KEYS}, sort_keys=True)


def parse(text: str, place: str) -> Evaluation | None:
    """From a document or a tag; None if it is an older one, without a recipe. Raises ConfigError for what is not one at all."""
    try:
        found = json.loads(text)
    except ValueError:
        raise ConfigError(f"{place} is not JSON: name a file that `biggan evaluate` has written") from None
    if not isinstance(found, dict) or not all(key in found for key in _KEYS):
        return None
    metrics = found["metrics"]
    numbers = isinstance(metrics, dict) and all(type(value) in (int, float) for value in metrics.values())
    if not numbers or not isinstance(found["recipe"], dict) or not re.fullmatch("[0-9a-f]{16}", str(found["recipe_id"])):
        raise ConfigError(f"{place}: metrics must be numbers, recipe an object and recipe_id 16 hex digits: evaluate again")
    rest = {"images": found.get("images", 0), "weights_sha256": found.get("weights_sha256", "")}
    return Evaluation(metrics, found["recipe"], found["recipe_id"], **rest, place=place)


def of_run(folder: Path, say: Callable[[str], None]) -> list[Evaluation]:
    """The documents in the run's `evaluation/`, by name; older ones are named to `say` and left out."""
    found = []
    for path in sorted((folder / "evaluation").glob("[0-9]*.json")):
        if document := parse(path.read_text(), str(path)):
            found.append(document)
        else:
            say(f"ignored: {path} has no recipe to compare by; `biggan evaluate` writes it anew")
    return found


def lower_is_better(metric: str) -> bool:
    """FID, intra-FID and KID are distances; accuracy, IS, precision, ... are not."""
    return metric.partition("[")[0].endswith(("FID", "KID"))


def best(found: list[Evaluation], metric: str) -> Evaluation:
    """The one with the best `metric`. Raises ConfigError if there is none, or if they cannot be compared."""
    known = [document for document in found if math.isfinite(document.metrics.get(metric, math.nan))]
    if not known:
        names = ", ".join(sorted({name for document in found for name in document.metrics})) or "nothing"
        raise ConfigError(f"--best {metric!r}: no evaluation of this run has it; they have {names}")
    if len({document.recipe_id for document in known}) > 1:
        places = ", ".join(f"{document.place} ({document.recipe_id})" for document in known)
        raise ConfigError(
            f"--best {metric!r}: made by several recipes, whose figures do not compare: {places}; type --checkpoint"
        )
    return (min if lower_is_better(metric) else max)(known, key=lambda document: document.metrics[metric])


def of_weights(found: list[Evaluation], weights_sha256: str) -> Evaluation | None:
    """The one about these very weights; of several the plain IMAGES.json. Raises ConfigError if that leaves a choice."""
    mine = [document for document in found if document.weights_sha256 == weights_sha256]
    plain = [document for document in mine if Path(document.place).stem.isdecimal()]
    if len(mine) > 1 and len(plain) != 1:
        raise ConfigError(f"several evaluations of these weights, type --evaluation: {', '.join(d.place for d in mine)}")
    chosen = plain or mine
    return chosen[0] if chosen else None
