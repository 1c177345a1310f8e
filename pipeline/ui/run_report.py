"""A run as one HTML page, made from its folder alone: nothing is loaded from elsewhere, so it can be mailed and kept."""

import base64
import html
import math
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from pipeline.errors import ConfigError, DataError
from pipeline.runs.run_folder import RunState, read_status
from pipeline.storage import small_files
from pipeline.storage.containment import inside
from pipeline.tracking.delivered import NODE_JOURNALS, delivered
from pipeline.tracking.journal import figures_path, journal_path, read, read_file, read_lines
from pipeline.tracking.records import CloseRecord, Event, ImageRecord, MetricsRecord, OpenRecord
from pipeline.ui.svg_chart import COLOURS, Points, line_chart
from pipeline.wording import hide_secrets

_SAMPLES = 12
_EVENTS = 200
_LINES = 8  # in a chart
# Each a chart at the top; every other metric has one further down.
_CURVES = {
    "Losses": ("loss/d", "loss/g"),
    "What D says": ("d/real", "d/fake"),
    "Gradient norms": ("grad_norm/d", "grad_norm/g"),
    "Images per second": ("images_per_second",),
    "Model FLOP utilisation": ("mfu",),
    "Learning rates": ("lr/d", "lr/g"),
}
_STYLE = """
:root { color-scheme: light dark; font: 15px/1.45 system-ui, sans-serif; }
body { max-width: 1000px; margin: 2em auto; padding: 0 1em; }
h1 { margin-bottom: 0; } h2 { border-bottom: 1px solid #8886; margin-top: 2em; }
table { border-collapse: collapse; } td, th { padding: .15em .9em .15em 0; text-align: left; vertical-align: top; }
td.n { text-align: right; font-variant-numeric: tabular-nums; } code, pre { font: 13px/1.4 ui-monospace, monospace; }
pre { overflow: auto; max-height: 40em; background: #8881; padding: 1em; }
.row { display: flex; flex-wrap: wrap; gap: 1em; } figure { margin: 0; flex: 1 1 440px; max-width: 490px; }
figcaption { font-size: 13px; } svg { width: 100%; } svg text { font-size: 11px; fill: currentColor; }
.grid { stroke: #8884; } polyline { stroke-width: 1.4; } figure img { width: 100%; image-rendering: pixelated; }
.small figure { flex: 0 1 230px; }
.bar { display: flex; height: 1.4em; margin: .5em 0; } .bad { color: #c62828; font-weight: 600; }
"""


_Count = Annotated[int, Field(ge=0, lt=small_files.BIG)]


@dataclass(frozen=True)
class _Evaluation:
    """What the page shows of a document; earlier versions wrote some without metrics."""

    metrics: dict[str, Any] | None = None
    images: _Count | None = None
    samples: _Count | None = None
    truncation: Annotated[float, Field(ge=0, lt=small_files.BIG)] | None = None

    @property
    def numbers(self) -> dict[str, float]:
        """Those of the metrics that are numbers."""
        return {key: float(value) for key, value in (self.metrics or {}).items() if _is_number(value)}


@dataclass(kw_only=True)
class _Run:
    """What a run's folder says."""

    folder: Path
    status: RunState | None
    curves: dict[str, list[tuple[float, float]]] = field(default_factory=lambda: defaultdict(list))
    starts: list[OpenRecord] = field(default_factory=list)
    ends: dict[int, str] = field(default_factory=dict)
    """How start number i ended."""
    images: list[ImageRecord] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    evaluations: list[_Evaluation] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)
    """Evaluations that cannot be read, and why."""


def run_page(folder: Path) -> str:
    """The HTML of a run's page. Raises ConfigError for a folder without a run."""
    run = _load(folder)
    parts = [_head(run), _lineage(run), _curves(run), _time(run), _samples(run), _evaluations(run), _events(run), _rest(run)]
    config = html.escape((folder / "config.yaml").read_text(errors="replace"))
    parts.append(f"<h2>Configuration</h2><details><summary>config.yaml</summary><pre>{config}</pre></details>")
    name = html.escape(folder.resolve().name)
    head = (
        f'<meta charset="utf-8"><title>{name}</title><meta name="viewport" content="width=device-width"><style>{_STYLE}</style>'
    )
    # Configuration, events and messages may name a URI with a password in it.
    return hide_secrets(f'<!doctype html><html lang="en"><head>{head}</head><body>{"".join(parts)}</body></html>\n')


def _load(folder: Path) -> _Run:
    if not (folder / "config.yaml").is_file():
        raise ConfigError(f"{folder} is not the folder of a run: it has no config.yaml")
    shown = ("config.yaml", "status.json", "journal.jsonl", "events.jsonl", "evaluation/*.json", NODE_JOURNALS)
    for path in (path for pattern in shown for path in folder.glob(pattern)):
        inside(folder, str(path.relative_to(folder)), folder)  # no link to what is not the run's
    run = _Run(folder=folder, status=read_status(folder / "status.json"))
    for record, _ in (*read(folder), *read_file(figures_path(folder))):
        match record:
            case OpenRecord():
                run.starts.append(record)
            case CloseRecord():
                run.ends[len(run.starts) - 1] = record.close
            case ImageRecord():
                run.images.append(record)
            case MetricsRecord():
                for key, value in record.metrics.items():
                    run.curves[key].append((record.step, value))
    for path in sorted(folder.glob(NODE_JOURNALS)):
        for record, _ in read_file(path):
            for key, value in record.metrics.items() if isinstance(record, MetricsRecord) else ():
                run.curves[key].append((record.time / 1000 - run.starts[0].time / 1000 if run.starts else 0, value))
    run.events = [event for event, _ in read_lines(folder / "events.jsonl", Event)]
    for path in sorted((folder / "evaluation").glob("*.json")):
        try:
            document = small_files.read(_Evaluation, path)
        except DataError as error:
            small_files.pass_over(error)
            run.damaged.append(str(error))
        else:
            run.evaluations += [document] if document and document.metrics is not None else []
    run.evaluations.sort(key=lambda one: (one.images or 0, one.truncation or 0))
    return run


def _head(run: _Run) -> str:
    status = run.status or RunState("not started")
    bad = ' class="bad"' if status.state == "failed" else ""
    line = f"{status.images:,} images, <span{bad}>{html.escape(status.state)}</span>"
    line += f": {html.escape(status.message)}" if status.message else ""
    return f"<h1>{html.escape(run.folder.resolve().name)}</h1><p>{line}</p>"


def _lineage(run: _Run) -> str:
    if not run.starts:
        return ""
    last = run.starts[-1].open
    tags = last.tags
    ids = list(delivered(run.folder))
    rows = [
        ("commit", tags.get("biggan.git_commit", "") + {"true": ", changed since"}.get(tags.get("biggan.git_dirty", ""), "")),
        *((f"data {row.name}", f"{row.uri}, fingerprint {row.fingerprint}") for row in last.datasets),
        ("config.yaml", f"sha256 {tags.get('biggan.config_sha256', '')}"),
        ("MLflow", f"{last.uri or 'mlflow.db in the folder'}, experiment {last.experiment}"),
        ("MLflow run", ", ".join(ids) or "not delivered yet: biggan sync"),
        ("id", last.uid),
    ]
    starts = []
    for i, record in enumerate(run.starts):
        own, process = record.open.tags, record.open.process or {}
        where = process.get("host", "") + (f", Slurm job {process['job_id']}" if "job_id" in process else "")
        at, ranks = own.get("biggan.resumed_from", ""), own.get("biggan.world_size", "")
        starts.append(
            (
                _clock(record.time / 1000),
                at,
                ranks,
                where,
                own.get("biggan.git_commit", "")[:10],
                run.ends.get(i, "no end told"),
            )
        )
    return (
        f"<h2>Where it comes from</h2>{_table(rows)}<h3>Starts</h3>"
        f"{_table(starts, ('time', 'from image', 'ranks', 'host', 'commit', 'ended'))}"
    )


def _curves(run: _Run) -> str:
    charts = [line_chart(title, {key: run.curves[key] for key in keys if key in run.curves}) for title, keys in _CURVES.items()]
    return f'<h2>Curves</h2><div class="row">{"".join(charts)}</div>'


def _time(run: _Run) -> str:
    """Where the time went, from the metrics `time/PART` in seconds, summed up over all reports."""
    parts = {
        key.partition("/")[2]: sum(value for _, value in points)
        for key, points in run.curves.items()
        if key.startswith("time/") and key.count("/") == 1 and key != "time/step_spread"
    }
    total = sum(parts.values())
    if not total:
        return ""
    ordered = sorted(parts.items(), key=lambda part: -part[1])
    bars, rows = "", []
    for i, (part, seconds) in enumerate(ordered):
        colour, share = COLOURS[i % len(COLOURS)], seconds / total
        bars += f'<span style="width:{share:.2%};background:{colour}" title="{html.escape(part)}"></span>'
        rows.append((part, f"{seconds:,.1f} s", f"{share:.1%}"))
    return f'<h2>Where the time went</h2><div class="bar">{bars}</div>{_table(rows, numbers=True)}'


def _samples(run: _Run) -> str:
    journal = journal_path(run.folder)
    named = [(record, inside(run.folder, record.file, journal)) for record in run.images]
    there = [(record, file) for record, file in named if file.is_file()]
    shown = [there[i * (len(there) - 1) // (_SAMPLES - 1)] for i in range(_SAMPLES)] if len(there) > _SAMPLES else there
    figures = []
    for record, file in shown:
        data = base64.b64encode(file.read_bytes()).decode()
        name = f"{html.escape(record.image)} at {record.step:,} images"
        figures.append(f'<figure><figcaption>{name}</figcaption><img src="data:image/png;base64,{data}" alt="{name}"></figure>')
    more = f" ({len(shown)} of {len(there)})" if len(shown) < len(there) else ""
    return f'<h2>Samples{more}</h2><div class="row small">{"".join(figures)}</div>' if figures else ""


def _evaluations(run: _Run) -> str:
    """A table of all evaluations, and a metric's curve over the truncation where the same images were judged at several."""
    if not run.evaluations and not run.damaged:
        return ""
    numbers = [one.numbers for one in run.evaluations]
    names = list(dict.fromkeys(name for metrics in numbers for name in metrics))
    rows = []
    curves: dict[str, dict[str, list[tuple[float, float]]]] = defaultdict(lambda: defaultdict(list))
    for one, metrics in zip(run.evaluations, numbers, strict=True):
        truncation, images = one.truncation, one.images or 0
        values = [f"{metrics[name]:.4g}" if name in metrics else "" for name in names]
        rows.append((f"{images:,}", "none" if truncation is None else f"{truncation:g}", f"{one.samples or 0:,}", *values))
        if truncation is not None:
            for name, value in metrics.items():
                curves[name][f"{images:,} images"].append((truncation, value))
    several = {
        name: {label: sorted(points) for label, points in lines.items() if len(points) > 1} for name, lines in curves.items()
    }
    charts = [*_fid_over_is(run), *(line_chart(name, lines, "truncation") for name, lines in several.items() if lines)]
    table = _table(rows, ("images", "truncation", "samples", *names))
    lines = "".join(f'<p class="bad">{html.escape(line)}; it is passed over</p>' for line in run.damaged)
    return f'<h2>Evaluation</h2>{table}{lines}<div class="row">{"".join(charts)}</div>'


def _is_number(value: object) -> bool:
    return type(value) is float or (type(value) is int and abs(value) < small_files.BIG)


def _fid_over_is(run: _Run) -> Iterator[str]:
    """The curve of each truncation sweep (BigGAN, figure 16), from small truncations to none."""
    sweeps: dict[str, dict[str, list[tuple[float, float, float]]]] = defaultdict(lambda: defaultdict(list))
    for one in run.evaluations:
        truncation, metrics = one.truncation, one.numbers
        for name in (name for name in metrics if name.startswith("FID[")):
            if (score := name.replace("FID", "IS", 1)) in metrics:
                order = math.inf if truncation is None else truncation
                sweeps[name][f"{one.images or 0:,} images"].append((order, metrics[score], metrics[name]))
    for name, lines in sweeps.items():
        curves = {label: [place[1:] for place in sorted(points)] for label, points in lines.items() if len(points) > 1}
        yield line_chart(f"{name}, truncations from small to none", curves, name.replace("FID", "IS", 1)) if curves else ""


def _events(run: _Run) -> str:
    if not run.events:
        return "<h2>Health</h2><p>Nothing was noticed.</p>"
    rows = [(_clock(e.time), f"{e.images:,}", e.kind, e.text) for e in run.events[-_EVENTS:]]
    more = f" (the last {_EVENTS} of {len(run.events)})" if len(run.events) > _EVENTS else ""
    return f"<h2>Health{more}</h2>{_table(rows, ('time', 'image', 'kind', 'what'))}"


def _rest(run: _Run) -> str:
    """Every other metric, by the part of its name before the last /."""
    known = {key for keys in _CURVES.values() for key in keys}
    groups: dict[str, dict[str, Points]] = defaultdict(dict)
    for key in sorted(run.curves.keys() - known):
        group, _, name = key.rpartition("/")
        unit = ", " + name.rpartition("_")[2] if key.startswith("system/") else ""
        groups[(group or name) + unit][name] = run.curves[key]
    charts = []
    for group, series in groups.items():
        names = list(series)
        for i in range(0, len(names), _LINES):
            x_label = "seconds since the first start" if group.startswith("system/") else "images"
            charts.append(line_chart(group, {name: series[name] for name in names[i : i + _LINES]}, x_label))
    inside = f'<summary>{len(charts)} charts</summary><div class="row">{"".join(charts)}</div>'
    return f"<h2>Everything else</h2><details>{inside}</details>"


def _clock(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def _table(rows: Iterable[Sequence[Any]], header: Sequence[str] = (), numbers: bool = False) -> str:
    """Cells as text; with `numbers`, all but the first of a row to the right."""
    lines = ["<tr>" + "".join(f"<th>{html.escape(cell)}</th>" for cell in header) + "</tr>"] if header else []
    for row in rows:
        cells = (f"<td{' class=n' if numbers and i else ''}>{html.escape(str(cell))}</td>" for i, cell in enumerate(row))
        lines.append("<tr>" + "".join(cells) + "</tr>")
    return f"<table>{''.join(lines)}</table>"
