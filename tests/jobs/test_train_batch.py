"""A training whose micro-batch and learning rates follow from its batch."""

from pathlib import Path

import pytest

from pipeline.tracking.mlflow_store import connect, store_uri
from tests.support.tiny_runs import log, mlflow_runs, train, train_forked


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_what_follows_from_the_batch_is_told_recorded_and_kept(tmp_path: Path, tiny: str) -> None:
    run = tmp_path / "run"
    asked = ("batch.micro_batch=auto", "optim.lr_scaling=sqrt", "optim.lr_batch=8", "sample_every=0")
    first = train(tiny, run, *asked, "total_images=64")
    assert first.returncode == 0, first.stderr + log(run)
    assert "batch.micro_batch=auto: trying which of 8, 16 fit into memory" in first.stdout
    assert "global batch 32 = 2 ranks x 1 micro-batch of 16, batch norm over 16" in first.stdout
    assert "learning rates: G 0.002, D 0.002, sqrt in the batch from 8" in first.stdout
    (recorded,) = mlflow_runs(run)
    assert recorded.data.tags["biggan.micro_batch"] == "16"
    # sqrt(32 / 8), and 32 of 128 images of warm-up
    history = connect(store_uri(run, None)).get_metric_history(recorded.info.run_id, "lr/g")
    assert [(point.step, point.value) for point in history] == [(64, pytest.approx(1e-3 * 2 / 4))]

    said = train_forked(tiny, run, *asked, "total_images=128")
    assert "trying" not in said and "2 ranks x 1 micro-batch of 16" in said
