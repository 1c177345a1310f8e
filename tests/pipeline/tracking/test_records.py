"""The lines of a journal: of every kind, as they have always been written."""

import json

import pytest

from pipeline.checkpoint.commit_document import CommitRow
from pipeline.errors import DataError
from pipeline.tracking import records
from pipeline.tracking.records import Record
from pipeline.untrusted import parse

OPENING = {
    "uid": "u",
    "mode": "auto",
    "uri": None,
    "experiment": "biggan",
    "params": {"seed": "0"},
    "tags": {"a": "b"},
    "datasets": [{"name": "cats", "uri": "/cats", "fingerprint": "f", "profile": "{}"}],
    "process": {"machine": "m", "host": "h", "pid": "7", "started": "9"},
}
LINES = {
    "OpenRecord": {"time": 1, "open": OPENING},
    "MetricsRecord": {"time": 1, "metrics": {"loss/d": 0.5}, "step": 64},
    "MetricsRecord of a node": {"time": 1, "host": "h", "metrics": {"system/node0/cpu": 1.0}, "step": 0},
    "MetricsRecord of an evaluation": {"time": 1, "metrics": {"eval/FID/x": 2.0}, "step": 64, "recipe": "0" * 16},
    "ImageRecord": {"time": 1, "image": "samples", "step": 64, "file": "samples/samples-0000000064.png"},
    "TextRecord": {"time": 1, "text": "a: 1", "path": "config.yaml"},
    "ArtifactRecord": {"time": 1, "artifact": "health.md"},
    "CloseRecord": {"time": 1, "close": "FINISHED"},
}


@pytest.mark.parametrize("kind", LINES)
def test_what_is_read_is_written_as_it_was(kind: str) -> None:
    line = json.dumps(LINES[kind])
    record = parse(Record, line, "journal")  # type: ignore[arg-type]
    assert type(record) is getattr(records, kind.partition(" ")[0]) and json.dumps(record.as_json()) == line


def test_the_first_versions_said_less() -> None:
    opening = {"uid": "u", "uri": None, "experiment": "biggan", "params": {}, "tags": {}}
    record = parse(records.OpenRecord, json.dumps({"time": 1, "open": opening}), "journal")
    assert (record.open.mode, record.open.datasets, record.open.process) == ("auto", [], None)


@pytest.mark.parametrize(
    "line", [{"metrics": {}, "step": 1}, {"time": 1, "metrics": {"a": "x"}, "step": 1}, {"time": 1, "image": "a"}, [1]]
)
def test_a_damaged_line_is_no_record_of_another_kind(line: object) -> None:
    with pytest.raises(DataError):
        parse(Record, json.dumps(line), "journal")  # type: ignore[arg-type]
    assert type(parse(Record, '{"time": 1, "later": 2}', "journal")) is records.OtherRecord  # type: ignore[arg-type]


def test_a_row_of_commit_has_slices_only_if_it_is_of_tensors() -> None:
    assert list(CommitRow(1, "0" * 64).as_json()) == ["bytes", "sha256"]
    assert CommitRow(8, "0" * 64, {"w": [0, 2]}).as_json()["slices"] == {"w": [0, 2]}
