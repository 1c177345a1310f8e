"""docs/performance.md shows what benchmarks/results/ holds; and how updates become ratios."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from benchmarks import performance
from benchmarks.peers import BARS, LIMIT, compare_losses, good, ratios


def test_the_page_is_that_of_the_results() -> None:
    text = performance.PAGE.read_text()
    assert performance.page(text) == text, "type python -m benchmarks.performance"


def test_a_page_without_marks_is_left_alone() -> None:
    with pytest.raises(ValueError, match="has lost its marks"):
        performance.page("# Performance\n")


def test_what_did_not_fit_has_a_row_that_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    whole = {"micro-batch": 4, "images/s": 12345.6, "d_step s": 0.5, "g_step s": -0.0}
    result = {"config": "biggan-128", "overrides": ["precision=fp32"], "device": "a GPU", "versions": {"torch": "2"}}
    rows = [whole, {"micro-batch": 8, "error": "does not fit"}]
    (tmp_path / "step-1.json").write_text(json.dumps(result | {"rows": rows}))
    monkeypatch.setattr(performance, "RESULTS", tmp_path)
    *_, fits, does_not = performance.step_table()[performance.STEP].splitlines()
    assert fits == "| a GPU, torch 2 | `biggan-128 precision=fp32` | 4 | 12,346 | 0.5 | 0 |  |  |  |"
    assert does_not == "| a GPU, torch 2 | `biggan-128 precision=fp32` | 8 | does not fit |  |  |  |  |  |"


def test_qualities_are_by_length(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for images in (64000, 128000):  # by name the other way round
        figures = {"accuracy": 0.5, "accuracy, errors": -1.25, "FID": 30.0, "FID, errors": -0.0}
        result = {"images": images, "means": {"fp32": figures}, "device": "a CPU", "versions": {"torch": "2"}}
        (tmp_path / f"quality-{images}.json").write_text(json.dumps(result))
    monkeypatch.setattr(performance, "RESULTS", tmp_path)
    assert performance.quality_table()[performance.QUALITY].splitlines()[2:] == [
        f"| a CPU, torch 2 | {images} | fp32 | 0.5 | -1.25 | 30 | 0 |" for images in (64000, 128000)
    ]


def test_a_ratio_is_that_of_the_same_round() -> None:
    theirs, ours = ([{"seconds": s, "threads": 2} for s in seconds] for seconds in ((4.0, 8.0, 2.0), (2.0, 2.0, 2.0)))
    first, second = ratios({"theirs": theirs, "ours": ours}, images=8)
    assert (first["images/s"], first["ratio"]) == (2.0, 1.0)
    assert second == {"step": "ours", "images/s": 4.0, "ratio": 2.0, "least": 1.0, "most": 4.0, "threads": 2}


@pytest.mark.parametrize(
    ("same", "fp32", "bf16", "ok"),
    [(True, 1.2, 2.0, True), (False, 3.0, 3.0, False), (True, 1.1, 3.0, False), (True, 1.9, 1.9, False)],
)
def test_both_bars_and_the_same_losses(same: bool, fp32: float, bf16: float, ok: bool) -> None:
    assert BARS == {"fp32": 1.2, "fastest": 2.0}
    rows = [
        {"step": "biggan-pytorch", "ratio": 1.0},
        {"step": "ours, fp32", "ratio": fp32},
        {"step": "ours, bf16", "ratio": bf16},
    ]
    assert good({"same losses": same, "rows": rows}) is ok


class Side:
    """An arm that says these losses of G."""

    def __init__(self, *losses: float):
        self._losses = iter(losses)

    def update(self, kind: str) -> dict[str, Any]:
        return {"losses": {"loss/g": next(self._losses)}, "seconds": 1.0} if kind == "exact" else {}


@pytest.mark.parametrize(
    ("ours", "once", "one_thread", "same"),
    [
        *((0.5, 2, 0.0, True), (2, 9, 0.0, False), (-2, 9, 0.0, False)),  # the limit
        *((5, 9, 4.0, True), (-5, 9, 2.0, False)),  # the original's own rounding
        *((0.5, 0.5, 0.0, False), (0.5, 5, 4.0, False)),  # blind
        *((math.nan, 9, 0.0, False), (math.nan, math.nan, math.nan, False), (0.5, 9, math.nan, True)),  # no number at all
    ],
)
def test_losses_are_the_same_if_none_but_the_same_method_makes_them(
    ours: float, once: float, one_thread: float, same: bool
) -> None:
    theirs = (1.0, -200.0, 0.0)
    sides = [Side(1.0, -200.0 * (1 + far * LIMIT), 0.0) for far in (ours, once, one_thread)]
    found = compare_losses(Side(*theirs), sides[0], once=sides[1], one_thread=sides[2])  # type: ignore[arg-type]
    assert found["same losses"] is same and found["apart"]["ours"] == pytest.approx(
        math.inf if math.isnan(ours) else abs(ours) * LIMIT
    )
    alone = compare_losses(Side(*theirs), Side(*theirs))  # type: ignore[arg-type]
    assert alone["same losses"] and alone["apart"] == {"ours": 0} and len(alone["losses"]) == 3
