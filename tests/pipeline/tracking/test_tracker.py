"""What a training calls: never slow, never an error for what is not its fault, always one for what is."""

import json
import logging
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.tracking.journal import Journal, append_line, journal_path, read
from pipeline.tracking.records import CloseRecord, MetricsRecord, OpenRecord, now
from pipeline.tracking.tracker import TrackingConfig
from tests.support.tiny_runs import disk, fill
from tests.support.tracked_run import GRID, track


@pytest.mark.long
def test_an_unreachable_server_costs_neither_time_nor_rows(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tracker = track(tmp_path, uri="http://127.0.0.1:9")
    slowest = 0.0
    for step in range(100):
        start = time.perf_counter()
        tracker.metrics({f"key{i}": 1.0 for i in range(12)}, step)
        slowest = max(slowest, time.perf_counter() - start)
        time.sleep(0.005)
    start = time.perf_counter()
    tracker.close("FINISHED")
    assert slowest < 0.25 and time.perf_counter() - start < 10
    assert tracker.run_id is None
    assert sum(isinstance(record, MetricsRecord) for record, _ in read(tmp_path)) == 100
    warnings = [
        r.getMessage() for r in caplog.records if r.levelno == logging.WARNING and r.name == "pipeline.tracking.tracker"
    ]
    assert len(warnings) == 2 and "training goes on" in warnings[0] and "journal.jsonl" in warnings[1]


def test_the_journal_writes_whole_lines_at_once(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.append(MetricsRecord(time=1, metrics={"loss": 1.0}, step=1))
    assert json.loads(journal_path(tmp_path).read_text())["metrics"] == {"loss": 1.0}  # before any close or flush
    journal.close()


def test_a_full_disk_costs_rows_and_not_the_training(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with disk(tmp_path / "disk", "64k") as folder:
        tracker = track(folder / "run", mode="off")
        fill(folder)
        for step in range(500):
            tracker.metrics({"loss": step / 7}, step)
        tracker.image(GRID, "samples", 1)
        (folder / "filler").unlink()
        tracker.metrics({"loss": 1.0}, 500)
        tracker.close("FINISHED")
        lines = journal_path(folder / "run").read_bytes().splitlines()
        records = [json.loads(line) for line in lines]  # each is whole
    rows = [record["step"] for record in records if "metrics" in record]
    assert rows[-1] == 500 and len(rows) < 500 and records[-1]["close"] == "FINISHED"
    said = [r.getMessage() for r in caplog.records if "training goes on" in r.getMessage()]
    assert 5 <= len(said) <= 10 and "No space left" in said[0]


@pytest.mark.parametrize("name", ["D(real)", "loss[0]", "", "ä%"])
def test_a_name_that_mlflow_would_refuse_fails_at_once(tmp_path: Path, name: str) -> None:
    tracker = track(tmp_path, mode="off")
    with pytest.raises(ValueError, match="cannot name"):
        tracker.metrics({name: 1.0}, 1)
    with pytest.raises(ValueError, match="cannot name"):
        tracker.image(GRID, name, 1)
    tracker.close("FAILED")


@pytest.mark.parametrize("image", [GRID.astype(np.float32), GRID[..., 0], GRID.transpose(2, 0, 1)])
def test_only_uint8_height_width_channels_is_an_image(tmp_path: Path, image: Any) -> None:
    tracker = track(tmp_path, mode="off")
    with pytest.raises(ValueError, match="uint8"):
        tracker.image(image, "samples", 1)
    tracker.close("FAILED")


@pytest.mark.parametrize("options", [{"flush_seconds": 0}, {"system_seconds": -1}])
def test_a_bad_number_is_named(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        TrackingConfig(**options)


def test_who_was_taken_for_dead_does_not_close_what_its_successor_has_opened(tmp_path: Path) -> None:
    tracker = track(tmp_path, uri=None, mode="offline")
    (first,) = (record for record, _ in read(tmp_path))
    assert isinstance(first, OpenRecord) and first.open.process
    successor = replace(first.open, process=first.open.process | {"pid": "1"})
    append_line(journal_path(tmp_path), OpenRecord(time=now(), open=successor))
    tracker.close("FAILED")
    assert not [record for record, _ in read(tmp_path) if isinstance(record, CloseRecord)]
