"""RUN/health.md: why a run has stopped, and what to try."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.tracking.journal import read_lines
from pipeline.tracking.records import Event

if TYPE_CHECKING:
    from pipeline.fault_tolerance.recovery import Failure


def message(run: Path, failure: "Failure", failures: int, furthest: int) -> str:
    """Return why a run has stopped in one line: an alarm, or the last of `failures` without getting past `furthest`."""
    where = f"{run / 'health.md'} says what happened and what to try"
    if failure.collapse:
        return f"stopped at {failure.images:,} images, saved, because of health.on_collapse=stop: {failure.reason}; {where}"
    return f"failed {failures} times without getting past image {furthest:,}, the last time because {failure.reason}; {where}"


def explain(run: Path, why: str, last: Mapping[str, float], collapse: bool) -> str:
    """Return the report of a stop, as Markdown, from RUN/events.jsonl and the means of the `last` report."""
    events = [event for event, _ in read_lines(run / "events.jsonl", Event)]
    lines = [f"# Why {run.name} stopped", "", why, "", "## What happened, last things last", ""]
    lines += ["| time | image | order | what | |", "|---|---|---|---|---|"]
    for event in events[-40:]:
        at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(event.time))
        lines.append(f"| {at} | {event.images:,} | {event.rollbacks} | {event.kind} | {event.text} |")
    lines += ["", "## Means of the last report", ""]
    lines += [f"- {key}: {value:.4g}" for key, value in sorted(last.items())]
    return "\n".join([*lines, "", "## What to try", "", *(_COLLAPSE_ADVICE if collapse else _FAILURE_ADVICE), ""])


_FAILURE_ADVICE = (
    "- Lower learning rates (`optim.g_lr`, `optim.d_lr`), a longer `optim.warmup`, or `health.rollback_lr=0.5`.",
    "- `precision=fp32`, to see whether bf16 is the cause; `zero.gradient_clipping=1`.",
    "- If it is always at the same image whatever the order, look for images that are no images: `biggan index URI --verify`.",
    "- An older start: a new run with `init=RUN/checkpoints/IMAGES`.",
    "- The same command goes on from the last good checkpoint, in yet another order of the data.",
)
_COLLAPSE_ADVICE = (
    "- The checkpoints from before the alarm are the result: a collapsed BigGAN does not come back (paper, section 4).",
    "- If D is sure of everything, it has learnt the images by heart: `objective.augment=diffaugment`, `objective.lecam`, "
    "`objective.r1`, a lower `optim.d_lr`, fewer `batch.d_steps`; a larger data set.",
    "- If G's spectra explode: a lower `optim.g_lr`, `objective.ortho=1e-4`.",
    "- If both networks are dead: lower `optim.g_lr` and `optim.d_lr`, a longer `optim.warmup`, in a new run.",
    "- `health.on_collapse=warn` lets the same command go on.",
)
