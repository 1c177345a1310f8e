"""System metrics of two nodes that share a run's folder, and what a failing disk does to a training."""

import logging
import time
from pathlib import Path

import pytest

from pipeline.tracking.delivery import Delivery
from pipeline.tracking.journal import read_file
from pipeline.tracking.mlflow_store import connect, store_uri
from pipeline.tracking.records import MetricsRecord
from pipeline.tracking.system_metrics import SystemMetrics
from pipeline.tracking.tracker import Tracker, TrackingConfig

NAMES = {"cpu_utilization_percentage", "system_memory_usage_megabytes", "disk_available_megabytes", "network_receive_megabytes"}


def sample(run: Path, node: int, times: int) -> None:
    """Node `node` samples until it has `times` more lines."""
    with SystemMetrics(run, 0.05, node) as metrics:
        had = len(list(read_file(metrics.path)))
        deadline = time.monotonic() + 60
        while len(list(read_file(metrics.path))) < had + times:
            assert time.monotonic() < deadline
            time.sleep(0.01)


@pytest.mark.long
def test_every_node_is_in_the_same_mlflow_run_with_one_row_per_step(tmp_path: Path) -> None:
    tracker = Tracker(TrackingConfig(mode="offline"), tmp_path, "uid", {}, {})
    sample(tmp_path, 0, 2)
    sample(tmp_path, 1, 2)
    assert sorted(path.name for path in (tmp_path / "system").iterdir()) == ["node00000.jsonl", "node00001.jsonl"]
    delivery = Delivery(tmp_path)
    run_id = delivery.deliver()
    with (tmp_path / "system" / "node00001.jsonl").open("a") as file:
        file.write('{"time": 1, "met')  # killed while it wrote
    sample(tmp_path, 1, 2)  # and started again
    tracker.close("FINISHED")
    for _ in range(2):
        Delivery(tmp_path).deliver()
    client = connect(store_uri(tmp_path, None))
    for node in (0, 1):
        written = [r for r, _ in read_file(tmp_path / "system" / f"node{node:05d}.jsonl") if isinstance(r, MetricsRecord)]
        for name in NAMES:
            rows = client.get_metric_history(run_id, f"system/node{node}/{name}")
            told = [(r.step, r.time, r.metrics[f"system/node{node}/{name}"]) for r in written]
            assert sorted((row.step, row.timestamp, row.value) for row in rows) == sorted(told)
            assert [step for step, _, _ in told] == list(range(len(told))) and len(told) >= 3 * (1 + node) - node


def test_none_are_taken_for_0_seconds_and_a_disk_that_fails_is_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with SystemMetrics(tmp_path, 0, 0):
        pass
    assert not (tmp_path / "system").exists()
    (tmp_path / "system").write_text("a file, where a folder has to be")
    with caplog.at_level(logging.WARNING), SystemMetrics(tmp_path, 0.01, 0):
        pass
    assert caplog.text.count("no more system metrics of node") == 1
