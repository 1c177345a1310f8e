"""What MLflow has of a run's journals, and what it lacks: two small files in the run's folder."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field
from typing_extensions import TypedDict

from pipeline.storage import small_files

UNDELIVERED = "tracking.json"
DELIVERED = "journal.offset"
NODE_JOURNALS = "system/*.jsonl"


class _Undelivered(TypedDict, total=False):
    why: str
    refused: list[str]


def undelivered(run_dir: Path) -> dict[str, Any]:
    """Return what MLflow lacks of a run: `why` it does not take the records, and those that it has `refused`, if any."""
    return dict(small_files.optional(_Undelivered, run_dir / UNDELIVERED) or {})


def delivered(run_dir: Path) -> dict[str, dict[str, int]]:
    """Return the bytes of each journal that each MLflow run has. Lost or damaged, it costs a repetition."""
    state = small_files.optional(dict[str, dict[str, Annotated[int, Field(ge=0, lt=1 << 63)]] | int], run_dir / DELIVERED) or {}
    return {run_id: offsets for run_id, offsets in state.items() if isinstance(offsets, dict)}
