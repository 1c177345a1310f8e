"""Records of a run's journal, one class for each kind of line; a line is a JSON object with the fields of one of them.

The kind of a line is the first of `KINDS` that it has as a key. What a record may leave out is None, and not in its line.
"""

import time
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any

from pydantic import Discriminator, Field, Tag

from pipeline.liveness import Process

_Moment = Annotated[int, Field(ge=0, lt=253_402_300_800_000)]
"""Milliseconds since 1970, before the year 10,000."""
_Step = Annotated[int, Field(ge=0, lt=1 << 63)]
"""In images; of a node's hardware, in samples."""


def now() -> int:
    """Return this moment in milliseconds since 1970."""
    return int(time.time() * 1000)


@dataclass(frozen=True)
class DatasetRow:
    """A data set that a run is trained on."""

    name: str
    uri: str
    fingerprint: str
    profile: str
    """JSON: how many images, classes, ..."""


@dataclass(frozen=True, kw_only=True)
class Opening:
    """What a process says of the run that it takes up."""

    uid: str
    mode: str = "auto"
    uri: str | None
    """Of MLflow; None: the store in the run's folder."""
    experiment: str
    params: dict[str, str]
    tags: dict[str, str]
    datasets: list[DatasetRow] = field(default_factory=list)
    process: Process | None = None


@dataclass(frozen=True, kw_only=True)
class _Record:
    time: _Moment

    def as_json(self) -> dict[str, Any]:
        """Return the line's object."""
        return {key: value for key, value in asdict(self).items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class OpenRecord(_Record):
    """A process took the run up."""

    open: Opening

    def __str__(self) -> str:
        return f"open {self.open.uid}"


@dataclass(frozen=True, kw_only=True)
class MetricsRecord(_Record):
    """Figures of one step."""

    host: str | None = None
    """Of a node's hardware: where it is."""
    metrics: dict[str, float]
    step: _Step
    recipe: str | None = None
    """Of an evaluation: the id of its recipe. Older versions wrote none."""


@dataclass(frozen=True, kw_only=True)
class ImageRecord(_Record):
    """A picture."""

    image: str
    """Its name."""
    step: _Step
    file: str
    """In the run's folder."""

    def __str__(self) -> str:
        return f"image {self.image}"


@dataclass(frozen=True, kw_only=True)
class TextRecord(_Record):
    """An artifact with its content."""

    text: str
    path: str

    def __str__(self) -> str:
        return f"text {self.path}"


@dataclass(frozen=True, kw_only=True)
class ArtifactRecord(_Record):
    """A file of the run's folder, as it is when it is delivered."""

    artifact: str

    def __str__(self) -> str:
        return f"artifact {self.artifact}"


@dataclass(frozen=True, kw_only=True)
class CloseRecord(_Record):
    """The run has ended."""

    close: str
    """FINISHED, FAILED or KILLED."""

    def __str__(self) -> str:
        return f"close {self.close}"


@dataclass(frozen=True, kw_only=True)
class OtherRecord(_Record):
    """A kind that a later version may write."""


KINDS = ("metrics", "open", "image", "text", "artifact", "close")


def _kind(line: Any) -> str:
    return next((key for key in KINDS if isinstance(line, dict) and key in line), "other")


Record = Annotated[
    Annotated[MetricsRecord, Tag("metrics")]
    | Annotated[OpenRecord, Tag("open")]
    | Annotated[ImageRecord, Tag("image")]
    | Annotated[TextRecord, Tag("text")]
    | Annotated[ArtifactRecord, Tag("artifact")]
    | Annotated[CloseRecord, Tag("close")]
    | Annotated[OtherRecord, Tag("other")],
    Discriminator(_kind),
]


@dataclass(frozen=True, kw_only=True)
class Event:
    """A line of RUN/events.jsonl (`pipeline.fault_tolerance.events`)."""

    time: Annotated[float, Field(ge=0, lt=253_402_300_800)]
    """Seconds since 1970."""
    kind: str
    images: _Step
    rollbacks: _Step
    text: str
