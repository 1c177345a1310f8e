"""What tests of tracking share: a tracker as a training makes it, and what a store has of it."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.tracking import mlflow_store
from pipeline.tracking.tracker import Tracker, TrackingConfig

GRID = np.arange(64 * 96 * 3, dtype=np.uint32).astype(np.uint8).reshape(64, 96, 3)


def track(run_dir: Path, uid: str = "one", params: dict[str, Any] | None = None, **config: Any) -> Tracker:
    run_dir.mkdir(exist_ok=True)
    return Tracker(TrackingConfig(**{"flush_seconds": 0.1, **config}), run_dir, uid, params or {}, {})


def only_run(uri: str, experiment: str = "biggan") -> Any:
    client = mlflow_store.connect(uri)
    found = client.get_experiment_by_name(experiment)
    assert found is not None
    (run,) = client.search_runs([found.experiment_id])
    return run


def steps(uri: str, key: str) -> list[int]:
    """Steps of every row of `key` in the only run, repeated ones included."""
    return sorted(m.step for m in mlflow_store.connect(uri).get_metric_history(only_run(uri).info.run_id, key))


def image_steps(uri: str) -> Counter[str]:
    files = mlflow_store.connect(uri).list_artifacts(only_run(uri).info.run_id, "images")
    return Counter(f.path.split("+step+")[1].split("+")[0] for f in files if f.path.endswith(".png"))
