"""Bounds of a configuration's values: declared with the field, and checked alike however the configuration is made.

@dataclass(frozen=True)
class BatchConfig:
    global_batch: Annotated[int, Bounds(ge=1)]

    def __post_init__(self) -> None:
        check_bounds(self)
"""

import functools
import math
import typing
from collections.abc import Hashable
from dataclasses import dataclass, fields
from typing import Any, cast


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """Where a number must lie. None and words, where the type allows them, have no bounds; of a tuple each number has them."""

    ge: float | None = None
    """At least."""
    gt: float | None = None
    """Above."""
    le: float | None = None
    """At most."""
    lt: float | None = None
    """Below; infinity lets every finite number pass."""
    because: str = ""
    """Ends the message."""

    def hold(self, value: float) -> bool:
        """Return whether `value` lies within. NaN does not lie anywhere."""
        return (
            (self.ge is None or value >= self.ge)
            and (self.gt is None or value > self.gt)
            and (self.le is None or value <= self.le)
            and (self.lt is None or value < self.lt)
        )

    def __str__(self) -> str:
        """Say it: `must be above 0 and at most 1`."""
        if (self.ge, self.le, self.lt) == (0, None, None):
            return f"must not be negative{self.because}"
        named = (("at least", self.ge), ("above", self.gt), ("at most", self.le), ("below", self.lt))
        words = ["finite" if limit == math.inf else f"{word} {limit:.15g}" for word, limit in named if limit is not None]
        return f"must be {' and '.join(words)}{self.because}"


def check_bounds(config: Any) -> None:
    """Check each field of a dataclass against the `Bounds` in its type. Raises ValueError: `NAME=VALUE: must be ...`."""
    for name, bounds in _bounded(cast(Hashable, type(config))):
        value = getattr(config, name)
        several = isinstance(value, tuple)
        for number in value if several else (value,):
            if isinstance(number, int | float) and not bounds.hold(number):
                raise ValueError(f"{name}={list(value)}: each {bounds}" if several else f"{name}={value}: {bounds}")


@functools.cache
def _bounded(kind: Any) -> list[tuple[str, Bounds]]:
    hints = typing.get_type_hints(kind, include_extras=True)
    found = [(field.name, getattr(hints[field.name], "__metadata__", ())) for field in fields(kind)]
    return [(name, part) for name, metadata in found for part in metadata if isinstance(part, Bounds)]
