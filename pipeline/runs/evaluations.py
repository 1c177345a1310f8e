"""The documents of `biggan evaluate`: where they are kept, and what the registry takes from them.

One checkpoint may have several evaluations, by recipes with other samples, data or extractors. None takes the place of another
in silence: RUN/evaluation/IMAGES.json is the one of the most samples, and the others stand beside it under names of their own.
"""

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from pipeline import storage, untrusted
from pipeline.errors import ConfigError
from pipeline.runs.evaluation_document import Document
from pipeline.storage import removal
from pipeline.wording import plural

TAG = "evaluation"
"""Of a version in the registry: JSON with the three keys of `_KEYS`. Those by other recipes have `evaluation.RECIPE`."""
_KEYS = ("metrics", "recipe", "recipe_id")

_Count = Annotated[int, Field(ge=0, lt=1 << 63)]

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Figures of one set of weights. Those of two recipes must not be compared."""

    metrics: dict[str, float]
    """By full name, as in FID[inception]."""
    recipe: dict[str, Any]
    """Extractor, reference, number of samples, truncation, ..., by any version (`evaluation_document.Recipe`)."""
    recipe_id: Annotated[str, Field(pattern="^[0-9a-f]{16}$")]
    """Equal for figures that can be compared."""
    images: _Count = 0
    """Which checkpoint."""
    weights_sha256: str = ""
    seed: _Count = 0
    """Of the latents."""
    place: str = ""
    """The file that it is from."""

    @property
    def samples(self) -> int:
        """How many images were drawn."""
        samples = self.recipe.get("samples")
        return samples if type(samples) is int and samples > 0 else 0

    def words(self) -> str:
        """Say how it was made: `10,000 samples, recipe 0123456789abcdef`."""
        return f"{plural(self.samples, 'sample')}, recipe {self.recipe_id}"

    def as_tag(self) -> str:
        """The value of the tag."""
        return json.dumps({key: getattr(self, key) for key in _KEYS}, sort_keys=True)


def parse(text: str, place: str) -> Evaluation | None:
    """Return a document or a tag; None for an older one, without a recipe. Raises ConfigError for what is not one at all."""
    advice = "name a file that `biggan evaluate` has written, or evaluate again"
    found = untrusted.parse(dict[str, Any], text, place, advice, ConfigError)
    if not all(key in found for key in _KEYS):
        return None
    return replace(untrusted.parse(Evaluation, text, place, advice, ConfigError), place=place)


def fault(metric: str, value: float) -> str:
    """Return why `value` cannot be a figure of `metric`, such as FID[inception]; "" if it can."""
    kind = metric.partition("[")[0]
    least, most = -math.inf, math.inf  # KID is an unbiased estimate, which may be below 0
    if kind in ("accuracy", "precision", "recall", "coverage"):
        least, most = 0.0, 1.0
    elif kind.endswith("FID") or kind in ("IS", "density"):
        least = -1e-6  # where two sets are equal, rounding
    if math.isfinite(value) and least <= value <= most:
        return ""
    if not math.isfinite(value):
        return "which is no figure"
    return f"which is not {'within 0 and 1' if most == 1 else 'at least 0'}"


@dataclass(frozen=True, kw_only=True)
class KeptDocument:
    """A document of any version that is there already, as far as `keep` goes by it."""

    samples: _Count | None = None
    metrics: dict[str, Any] = field(default_factory=dict)
    spread: dict[str, Any] = field(default_factory=dict)
    floor: dict[str, Any] = field(default_factory=dict)
    class_intra_fid: dict[str, Any] = field(default_factory=dict)
    left_out: dict[str, Any] = field(default_factory=dict)
    recipe_id: Any = None
    seed: Any = None
    weights_sha256: Any = None
    whole: dict[str, Any] = field(default_factory=dict)
    """The file's object, with the keys that this version does not know."""


def keep(place: str, document: Document, say: Say) -> str:
    """Write `document` to `place` or, if another evaluation of at least as many samples is there, beside it; return where.

    What was at `place` is kept beside it if it was another evaluation, and its figures if it was the same one of other
    `--metrics`. Raises ConfigError if it is no document.
    """
    old, target, own = read(place), place, _beside(place, document)
    for known in (old, read(own)):
        if known is not None and _identity(known) == _identity(document):
            document = replace(
                document,
                metrics=known.metrics | document.metrics,
                spread=known.spread | document.spread,
                floor=known.floor | document.floor,
                class_intra_fid=known.class_intra_fid | document.class_intra_fid,
                left_out=known.left_out | document.left_out,
            )
    if old is not None and _identity(old) != _identity(document):
        again = (old.recipe_id, old.seed) == (document.recipe_id, document.seed)  # by the same recipe, of other weights
        if (old.samples or 0) >= document.samples and not again:
            target = own
        else:
            _write(_beside(place, old), old.whole)
            say(f"kept: {_beside(place, old)}, which was {place} ({plural(old.samples or 0, 'sample')})")
    _write(target, document.as_json())
    if target == place:
        removal.remove(own, lambda data: _identity(_known(data, own)) == _identity(document))  # `read` has taken it for one
    return target


def offer(place: str, document: Document) -> bool:
    """Write `document` to `place`, unless another evaluation of at least as many samples is there; return whether it did."""
    old = read(place)
    if old is not None and _identity(old) != _identity(document) and (old.samples or 0) >= document.samples:
        return False
    _write(place, document.as_json())
    return True


def read(place: str) -> KeptDocument | None:
    """Return the document at `place`, None if there is none. Raises ConfigError for another file."""
    if not storage.exists(place):
        return None
    try:
        return _known(storage.read_bytes(place), place)
    except IsADirectoryError:
        raise ConfigError(f"{place} is not a document of `biggan evaluate` but a folder: {_ELSEWHERE}") from None


_ELSEWHERE = "move it elsewhere, then evaluate again"


def _known(data: bytes, place: str) -> KeptDocument:
    what = f"{place} is not a document of `biggan evaluate`"
    whole = untrusted.parse(dict[str, Any], data, what, _ELSEWHERE, ConfigError)
    return replace(untrusted.parse(KeptDocument, data, what, _ELSEWHERE, ConfigError), whole=whole)


def _write(place: str, document: Mapping[str, Any]) -> None:
    storage.write_bytes(place, (json.dumps(document, indent=1, ensure_ascii=False) + "\n").encode())


def _identity(document: Document | KeptDocument) -> str:
    """Hash what makes two documents figures of one thing: recipe, seed and weights."""
    parts: Any = [document.recipe_id, document.seed, document.weights_sha256]
    if isinstance(document, KeptDocument) and document.recipe_id is None:
        parts = document.whole  # the oldest documents have no recipe
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:8]


def _beside(place: str, document: Document | KeptDocument) -> str:
    """Name a document by its samples and identity: `0000192000-500-samples-1a2b3c4d.json`."""
    return f"{place.removesuffix('.json')}-{document.samples or 0}-samples-{_identity(document)}.json"


def of_run(folder: Path, say: Say) -> list[Evaluation]:
    """Return the documents in the run's `evaluation/`, by name; `say` is told which are damaged or old, and left out."""
    found = []
    for path in sorted((folder / "evaluation").glob("[0-9]*.json")):
        try:
            document = parse(path.read_text(errors="replace"), str(path))
        except (ConfigError, IsADirectoryError) as error:
            say(f"ignored: {error}")
            continue
        if document:
            found.append(document)
        else:
            say(f"ignored: {path} has no recipe to compare by; `biggan evaluate` writes it anew")
    return found


def lower_is_better(metric: str) -> bool:
    """FID, intra-FID and KID are distances; accuracy, IS, precision, ... are not."""
    return metric.partition("[")[0].endswith(("FID", "KID"))


def best(found: list[Evaluation], metric: str, say: Say) -> Evaluation:
    """Return the one with the best `metric`, among those by the recipe of the most samples.

    `say` is told how many are by other recipes. Raises ConfigError if none has it, or if several recipes have as many samples.
    """
    known = [document for document in found if not fault(metric, document.metrics.get(metric, math.nan))]
    if not known:
        names = ", ".join(sorted({name for document in found for name in document.metrics})) or "nothing"
        raise ConfigError(f"--best {metric!r}: no evaluation of this run has it; they have {names}")
    most = max(document.samples for document in known)
    compared = [document for document in known if document.samples == most]
    if len({document.recipe_id for document in compared}) > 1:
        places = ", ".join(f"{document.place} ({document.recipe_id})" for document in compared)
        raise ConfigError(
            f"--best {metric!r}: made by several recipes, whose figures do not compare: {places}; pass --checkpoint IMAGES"
        )
    if others := len(known) - len(compared):
        say(f"--best {metric!r}: {plural(others, 'evaluation')} by other recipes than {compared[0].words()} not compared")
    return (min if lower_is_better(metric) else max)(compared, key=lambda document: document.metrics[metric])


def of_weights(found: list[Evaluation], weights_sha256: str) -> list[Evaluation]:
    """Those about these very weights, the one of the most samples first. Raises ConfigError if that leaves a choice."""
    mine = [document for document in found if document.weights_sha256 == weights_sha256]
    # Of equally many samples the plain IMAGES.json comes first.
    ordered = sorted(mine, key=lambda d: (-d.samples, not Path(d.place).stem.isdecimal()))
    if len(ordered) > 1:
        first, second = ordered[:2]
        if first.samples == second.samples and not Path(first.place).stem.isdecimal():
            places = ", ".join(document.place for document in ordered if document.samples == first.samples)
            raise ConfigError(f"several evaluations of these weights: pass --evaluation FILE, one of {places}")
    return ordered


def of_tags(tags: Mapping[str, str], place: str) -> list[Evaluation]:
    """Return the evaluations among a version's tags, the one that decides first; what cannot be read is left out."""
    found: dict[str, Evaluation] = {}
    for key in sorted(key for key in tags if key.partition(".")[0] == TAG):
        with suppress(ConfigError):
            if document := parse(tags[key], place):
                found.setdefault(document.recipe_id, document)
    return list(found.values())


def new_tags(held: Mapping[str, str], found: Sequence[Evaluation], named: bool = False) -> dict[str, str]:
    """Return the tags to set on a version with the tags `held`, so that it has `found` beside what it has.

    The one that decides (`TAG`) is the first of `found` if it was `named`, if it is by the same recipe as the one held, or has
    more samples; else the one held. The others have a tag by their recipe.
    """
    before = of_tags({TAG: held[TAG]}, TAG) if TAG in held else []
    ordered = [*found, *before]
    if found and before and not named and before[0].recipe_id != found[0].recipe_id and before[0].samples >= found[0].samples:
        ordered = [*before, *found]
    by_recipe: dict[str, Evaluation] = {}
    for one in ordered:
        by_recipe.setdefault(one.recipe_id, one)
    wanted = {f"{TAG}.{recipe_id}" if i else TAG: one.as_tag() for i, (recipe_id, one) in enumerate(by_recipe.items())}
    return {key: value for key, value in wanted.items() if held.get(key) != value}
