"""The progress line and the metrics of a report."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pipeline.data.manifest import load_manifest
from pipeline.engine.batch import plan_batch
from pipeline.engine.ranks import Ranks
from pipeline.fault_tolerance.watchdog import spread_of
from pipeline.training.figures import FIGURES, Report, metrics, progress_line, slow_rank
from pipeline.training.setup import Setup
from tests.support.small_config import small_config

VALUES = {"loss/d": 1.25, "loss/g": -0.5, "d/real": 0.75, "d/fake": -1.0, "grad_norm/d": 2.5, "grad_norm/g": 0.125}


@pytest.fixture
def report(tmp_path: Path, shards: Path) -> Report:
    config, ranks = small_config(tmp_path / "run", shards), Ranks(rank=0, world_size=2, device=torch.device("cpu"))
    setup = Setup(
        config=config,
        ranks=ranks,
        plan=plan_batch(config.batch, 2),
        manifest=load_manifest(str(shards)),
        uid="u",
        profile=0,
    )
    return Report(
        setup=setup,
        images=400,
        values=VALUES,
        speed=50.0,
        mfu=0.25,
        parts={"d_step": 3.0, "data": 1.0},
        spread=None,
        lr_scale=0.5,
        bad_samples=0,
    )


def test_the_line_reads_as_it_always_did(report: Report) -> None:
    line = (
        "       400 img     50.0 img/s  MFU  25%  data  25%  comm   0%  D  1.250  G -0.500  D(real)   0.75  D(fake)  -1.00  "
        "|grad D|   2.500  |grad G|   0.125  left 0.2 min"
    )
    assert progress_line(report) == line
    assert progress_line(replace(report, bad_samples=3)) == f"{line}  bad samples 3"


def test_metrics_are_what_the_steps_returned_the_figures_and_the_time(report: Report) -> None:
    optim, found = report.setup.config.optim, metrics(report)
    assert found.pop("memory/peak_gb") > 0
    figures = {"images_per_second": 50, "images_per_second_per_device": 25, "mfu": 0.25, "data/bad_samples": 0}
    rates = {"lr/g": optim.g_lr / 2, "lr/d": optim.d_lr / 2}
    times = {"time/d_step": 3.0, "time/data": 1.0, "time/share/d_step": 0.75, "time/share/data": 0.25}
    assert found == VALUES | figures | rates | times
    names = [figure.metric for figure in FIGURES if figure.metric]
    assert len(set(names)) == len(names)


def test_a_slow_rank_is_named(report: Report) -> None:
    assert slow_rank(report) is None
    assert slow_rank(replace(report, spread=spread_of([1.0, 1.2], ["a", "b"]))) is None
    slow = replace(report, spread=spread_of([1.0, 2.0], ["a", "b"]))
    assert str(slow_rank(slow)).startswith("rank 1 on b is slow: 2.00 s") and metrics(slow)["time/step_spread"] == 2
