"""What MLflow has of a run's journals, and what it lacks: two small files in the run's folder."""

import contextlib
import json
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field
from typing_extensions import TypedDict

from pipeline.errors import UserError
from pipeline.storage import small_files
from pipeline.storage.removal import has, remove
from pipeline.storage.temporary import replacing

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


def note_undelivered(run_dir: Path, why: str | None, refused: list[str]) -> None:
    """Keep what MLflow lacks; no file says that it lacks nothing."""
    told: dict[str, Any] = ({"why": why} if why else {}) | ({"refused": refused} if refused else {})
    if told == undelivered(run_dir):
        return
    with contextlib.suppress(OSError, UserError):  # a full disk is reported by whoever has to write there
        if told:
            (run_dir / UNDELIVERED).write_text(json.dumps(told))
        else:
            remove(str(run_dir / UNDELIVERED), lambda data: has("why")(data) or has("refused")(data))


def note_delivered(run_dir: Path, run_id: str, name: str, offset: int) -> None:
    """Keep that the MLflow run `run_id` has `offset` bytes of the journal `name`.

    A run may go to several servers: each has an MLflow run of its own.
    """
    state = delivered(run_dir)
    state[run_id] = {**state.get(run_id, {}), name: offset}
    with replacing(run_dir / DELIVERED) as new:
        new.write_text(json.dumps(state))
