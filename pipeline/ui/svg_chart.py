"""Line charts as SVG, self-contained: what a page of HTML needs to show curves where nothing else may be loaded."""

import html
import math
from collections.abc import Mapping, Sequence

Points = Sequence[tuple[float, float]]

COLOURS = ("#1f77b4", "#d95f02", "#2ca02c", "#c2185b", "#7b52ab", "#8c564b", "#00897b", "#7f7f7f")
_WIDTH, _HEIGHT, _LEFT, _TOP, _RIGHT, _BOTTOM = 460, 240, 58, 12, 12, 24
_MOST = 400  # points of a line; a screen shows no more


def line_chart(title: str, series: Mapping[str, Points], x_label: str = "images") -> str:
    """An `<figure>` with a line for each of `series`, (x, y) each; y is logarithmic where it spans more than three decades.

    Values that are not finite leave gaps. A line has at most 400 points, each the mean of its neighbours.
    """
    finite = [(x, y) for points in series.values() for x, y in points if math.isfinite(y)]
    if not finite:
        return ""
    xs, ys = [x for x, _ in finite], [y for _, y in finite]
    log = min(ys) > 0 and max(ys) > 1000 * min(ys)
    x_ticks, y_ticks = _ticks(min(xs), max(xs)), _decades(min(ys), max(ys)) if log else _ticks(min(ys), max(ys))
    scale = math.log10 if log else float
    x_span = _span(min(xs), max(xs))
    y_span = _span(scale(min(*ys, y_ticks[0])), scale(max(*ys, y_ticks[-1])))

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - x_span[0]) / (x_span[1] - x_span[0]) * (_WIDTH - _LEFT - _RIGHT)
        down = (y_span[1] - scale(y)) / (y_span[1] - y_span[0]) * (_HEIGHT - _TOP - _BOTTOM)
        return round(_LEFT + across, 1), round(_TOP + down, 1)

    parts = []
    for tick in y_ticks:
        _, y = place(x_span[0], tick)
        parts.append(f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y}" y2="{y}" class="grid"/>')
        parts.append(f'<text x="{_LEFT - 5}" y="{y + 4}" text-anchor="end">{_short(tick)}</text>')
    for tick in x_ticks:
        x, _ = place(tick, y_ticks[0])
        parts.append(f'<text x="{x}" y="{_HEIGHT - 8}" text-anchor="middle">{_short(tick)}</text>')
    for (_, points), colour in zip(series.items(), _endless(COLOURS), strict=False):
        for run in _runs(_thinned(points)):
            path = " ".join(f"{x},{y}" for x, y in (place(x, y) for x, y in run))
            dot = place(*run[-1])
            parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}"/>')
            parts.append(f'<circle cx="{dot[0]}" cy="{dot[1]}" r="2" fill="{colour}"/>')
    legend = " ".join(
        f'<span style="color:{colour}">{html.escape(name)}</span>'
        for name, colour in zip(series, _endless(COLOURS), strict=False)
    )
    caption = f"<b>{html.escape(title)}</b>{' (logarithmic)' if log else ''} over {html.escape(x_label)}: {legend}"
    drawing = f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{html.escape(title)}">{"".join(parts)}</svg>'
    return f"<figure><figcaption>{caption}</figcaption>{drawing}</figure>"


def _endless(colours: Sequence[str]) -> list[str]:
    return list(colours) * 64


def _thinned(points: Points) -> Points:
    size = -(-len(points) // _MOST)
    groups = [points[i : i + size] for i in range(0, len(points), size)] if size > 1 else []
    if not groups:
        return points
    return [(sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group)) for group in groups]


def _runs(points: Points) -> list[list[tuple[float, float]]]:
    """The stretches between values that are not finite."""
    runs: list[list[tuple[float, float]]] = [[]]
    for x, y in points:
        if math.isfinite(y):
            runs[-1].append((x, y))
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run]


def _span(low: float, high: float) -> tuple[float, float]:
    return (low, high) if high > low else (low - (abs(low) or 1) / 2, high + (abs(high) or 1) / 2)


def _ticks(low: float, high: float) -> list[float]:
    """About five round numbers within low..high, or the one value there is."""
    if high <= low:
        return [low]
    rough = (high - low) / 4
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= rough)
    return [i * step for i in range(math.ceil(low / step), math.floor(high / step) + 1)] or [low]


def _decades(low: float, high: float) -> list[float]:
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [10.0**e for e in exponents][:: max(1, len(exponents) // 5)]


def _short(value: float) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.4g}{letter}"
    return f"{value:.3g}"
