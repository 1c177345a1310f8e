"""`precision=auto` on real ranks: what is measured decides, once in a run, for all of them."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from model.config import ModelConfig
from pipeline.config import RunConfig
from pipeline.data.loader import DataConfig
from pipeline.data.manifest import load_manifest
from pipeline.engine.batch import BatchConfig
from pipeline.engine.ranks import Ranks
from pipeline.runs.run_folder import prepare
from pipeline.training.precision import MARGIN, settle
from tests.support.ranks import on_ranks

OTHER = {"bf16": "fp32", "fp32": "bf16"}


def config_in(run: Path, shards: str) -> RunConfig:
    return RunConfig(
        run=str(run),
        total_images=1000,
        model=ModelConfig(32, 4),
        data=DataConfig(uri=shards),
        batch=BatchConfig(8, 8),
        precision="auto",
    )


def start_four_times(ranks: Ranks, folder: str, shards: str) -> None:
    # Only rank 0 may look for what the run began with: another node may have no such folder.
    config = config_in(Path(folder, "run" if ranks.main else "nothing"), shards)
    found = [settle(config, ranks)]
    typed = replace(config, precision=OTHER[found[0].precision])
    for started in (found[0], typed):
        if ranks.main:
            prepare(started, load_manifest(shards))
        found += [settle(started, ranks), settle(config, ranks)]
    on_gpus = settle(replace(config, run=f"{folder}/new"), replace(ranks, device=torch.device("cuda")))
    Path(folder, f"{ranks.rank}.json").write_text(json.dumps([start.precision for start in [*found, on_gpus]]))


@pytest.mark.long
def test_the_faster_one_is_taken_by_all_and_kept(tmp_path: Path, shards: Path) -> None:
    lines = on_ranks(2, start_four_times, str(tmp_path), str(shards)).splitlines()
    found, others = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    said = [line for line in lines if line.startswith("precision=auto: ")]
    measured = re.fullmatch(r"precision=auto: (\w+), as a thread .* at (\d+) GFLOP/s in bf16, (\d+) in fp32", said[0])
    assert measured
    faster, bf16, fp32 = measured[1], int(measured[2]), int(measured[3])
    assert min(bf16, fp32) > 0
    if abs(fp32 / bf16 - MARGIN) > 0.05:  # else it depends on what was rounded
        assert faster == ("fp32" if fp32 / bf16 > MARGIN else "bf16")
    # What somebody types is not questioned, and the run goes on with that: it was the slower one here.
    slower = OTHER[faster]
    assert found == others == [faster, faster, faster, slower, slower, "bf16"]
    assert said[1:] == [
        f"precision=auto: {faster}, as this run began",
        f"precision=auto: {slower}, as this run began",
        "precision=auto: bf16, as on every GPU",
    ]


def test_nothing_trains_in_a_precision_that_is_not_settled(tmp_path: Path) -> None:
    with pytest.raises(AssertionError):
        assert config_in(tmp_path, "nowhere").bf16 is None
