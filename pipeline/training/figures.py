"""The figures of a report, each in one place: how it reads in the progress line, and its name as a metric."""

import resource
from collections.abc import Callable
from dataclasses import dataclass

import torch

from pipeline.fault_tolerance.watchdog import SLOW, Spread
from pipeline.profiling.clock import COMMUNICATION
from pipeline.training.setup import Setup


@dataclass(frozen=True, kw_only=True)
class Report:
    """What is known about the updates since the last report."""

    setup: Setup
    images: int
    """At which the report is made."""
    values: dict[str, float]
    """Means over the updates and over all ranks of what the steps returned."""
    speed: float
    """Images per second."""
    mfu: float
    parts: dict[str, float]
    """Seconds by part of the run's time."""
    spread: Spread | None
    """Of the ranks' own times."""
    lr_scale: float
    bad_samples: int
    """Since the start."""

    def share(self, part: str) -> float:
        """Return the share of `part` in the time."""
        return self.parts.get(part, 0) / sum(self.parts.values())

    @property
    def minutes_left(self) -> float:
        """Until `total_images`, at this speed."""
        return max(0, self.setup.config.total_images - self.images) / self.speed / 60


@dataclass(frozen=True)
class Figure:
    """One number of a report."""

    value: Callable[[Report], float]
    text: str = ""
    """How it reads in the progress line, for `str.format`; "" if it is not there."""
    metric: str = ""
    """Its name in MLflow; "" if it is not there, or is one of `Report.values`."""
    if_any: bool = False
    """In the line only if it is not 0."""


FIGURES = (
    Figure(lambda r: r.images, "{:>10,} img"),
    Figure(lambda r: r.speed, "{:7.1f} img/s", "images_per_second"),
    Figure(lambda r: r.speed / r.setup.ranks.world_size, metric="images_per_second_per_device"),
    Figure(lambda r: r.mfu, "MFU {:4.0%}", "mfu"),
    Figure(lambda r: r.share("data"), "data {:4.0%}"),
    Figure(lambda r: r.share(COMMUNICATION), "comm {:4.0%}"),
    Figure(lambda r: r.values["loss/d"], "D {:6.3f}"),
    Figure(lambda r: r.values["loss/g"], "G {:6.3f}"),
    Figure(lambda r: r.values["d/real"], "D(real) {:6.2f}"),
    Figure(lambda r: r.values["d/fake"], "D(fake) {:6.2f}"),
    Figure(lambda r: r.values["grad_norm/d"], "|grad D| {:7.3f}"),
    Figure(lambda r: r.values["grad_norm/g"], "|grad G| {:7.3f}"),
    Figure(lambda r: r.minutes_left, "left {:.1f} min"),
    Figure(lambda r: peak_memory(r.setup.ranks.device) / 1e9, metric="memory/peak_gb"),
    Figure(lambda r: r.lr_scale * r.setup.config.optim.g_lr, metric="lr/g"),
    Figure(lambda r: r.lr_scale * r.setup.config.optim.d_lr, metric="lr/d"),
    Figure(lambda r: r.bad_samples, "bad samples {}", "data/bad_samples", if_any=True),
)
"""In the order of the line. A new one is a row here."""


def progress_line(report: Report) -> str:
    """Return the line that a person sees."""
    shown = [(figure, figure.value(report)) for figure in FIGURES if figure.text]
    return "  ".join(figure.text.format(value) for figure, value in shown if value or not figure.if_any)


def metrics(report: Report) -> dict[str, float]:
    """Return what MLflow gets."""
    found = report.values | {figure.metric: figure.value(report) for figure in FIGURES if figure.metric}
    if report.spread:
        found["time/step_spread"] = report.spread.ratio
    found |= {f"time/{part}": seconds for part, seconds in report.parts.items()}
    return found | {f"time/share/{part}": report.share(part) for part in report.parts}


def slow_rank(report: Report) -> str | None:
    """Return a line about the slowest rank, if it is slow."""
    spread = report.spread
    if not spread or spread.ratio <= SLOW:
        return None
    return (
        f"{spread.slowest} is slow: {spread.most:.2f} s of its own per update, where the median is "
        f"{spread.median:.2f} s and the least {spread.least:.2f} s"
    )


def peak_memory(device: torch.device) -> int:
    """Bytes that tensors took at most on the GPU, or this process in all on a CPU, since its start."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
