"""Bounds are declared with a field: the same words whoever makes the configuration."""

import dataclasses
import math
import typing
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.bounds import Bounds, check_bounds
from pipeline.cluster.job import ClusterJob
from pipeline.config import RunConfig
from pipeline.config_tree import named_sections_in, section_in


@dataclass(frozen=True)
class Sample:
    count: Annotated[int | Literal["auto"] | None, Bounds(ge=1)] = None
    rate: Annotated[float, Bounds(gt=0, lt=math.inf)] = 1.0
    shares: Annotated[tuple[float, ...], Bounds(ge=0, lt=1)] = ()
    rest: Annotated[int, Bounds(ge=0, because="; 0 for none")] = 0

    def __post_init__(self) -> None:
        check_bounds(self)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"count": 0}, "count=0: must be at least 1"),
        ({"rate": 0}, "rate=0: must be above 0 and finite"),
        ({"rate": math.inf}, "rate=inf: must be above 0 and finite"),
        ({"rate": math.nan}, "rate=nan: must be above 0 and finite"),
        ({"shares": (0.5, 1.0)}, "shares=[0.5, 1.0]: each must be at least 0 and below 1"),
        ({"rest": -1}, "rest=-1: must not be negative; 0 for none"),
    ],
)
def test_what_is_out_of_bounds_is_named_with_its_value(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError) as raised:
        Sample(**values)
    assert str(raised.value) == said


def test_no_number_has_no_bounds() -> None:
    assert Sample(count="auto").count == "auto" and Sample(count=None).count is None


@given(st.floats(), st.none() | st.floats(-9, 9), st.none() | st.floats(-9, 9))
def test_both_ends_count_or_neither(value: float, low: float | None, high: float | None) -> None:
    closed, opened = Bounds(ge=low, le=high), Bounds(gt=low, lt=high)
    ends = {low, high}
    assert closed.hold(value) == (opened.hold(value) or (value in ends and closed.hold(value)))
    assert not (opened.hold(value) and value in ends)


def sections(kind: Any) -> list[Any]:
    """Every dataclass below `kind`, and itself."""
    inner = [section_in(hint) or named_sections_in(hint) for hint in typing.get_type_hints(kind).values()]
    return [kind, *(below for one in inner if one for below in sections(one))]


@pytest.mark.parametrize("kind", [*sections(RunConfig), ClusterJob], ids=lambda kind: kind.__name__)
def test_each_section_checks_the_bounds_that_it_declares(kind: Any) -> None:
    """Whoever adds a bound to a class that does not look at its bounds sees it here."""
    hints = typing.get_type_hints(kind, include_extras=True)
    for field in dataclasses.fields(kind):
        for bounds in getattr(hints[field.name], "__metadata__", ()):
            low = bounds.ge - 1 if bounds.ge is not None else bounds.gt
            made = object.__new__(kind)
            for other in dataclasses.fields(kind):
                object.__setattr__(made, other.name, other.default)
            object.__setattr__(made, field.name, (low,) if isinstance(field.default, tuple) else low)
            with pytest.raises(ValueError, match=f"^{field.name}=.*must "):
                made.__post_init__()
