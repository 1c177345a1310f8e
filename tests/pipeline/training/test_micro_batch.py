"""`batch.micro_batch=auto` on real ranks: what fits, agreed by all, tried once."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from model.config import ModelConfig
from pipeline.config import RunConfig
from pipeline.data.loader import DataConfig
from pipeline.engine.batch import BatchConfig
from pipeline.engine.ranks import Ranks
from pipeline.errors import ConfigError
from pipeline.training.memory_trial import free_memory
from pipeline.training.micro_batch import FILE, plan_in_memory
from tests.support.ranks import on_ranks

# A rank with everything imported has 0.4 to 0.9 GB, and each image of a micro-batch takes about 2 MB more.
LIMIT_GB = 1.3
BATCH = BatchConfig(1024, 256, "auto", memory_gb=LIMIT_GB)
CANDIDATES = [128, 256, 512]


def start_three_times(ranks: Ranks, folder: str) -> None:
    model = ModelConfig(32, 4, ch=8, shared_dim=8, z_dim=16)
    config = RunConfig(
        run=folder, total_images=1024, model=model, data=DataConfig(uri="nowhere"), batch=BATCH, precision="fp32"
    )
    plans = [plan_in_memory(config, ranks) for _ in range(2)]
    with pytest.raises(ConfigError) as refused:
        plan_in_memory(replace(config, batch=replace(BATCH, norm_group=512, memory_gb=0.01)), ranks)
    told = {"plans": [vars(plan) for plan in plans], "refused": str(refused.value)}
    Path(folder, f"{ranks.rank}.json").write_text(json.dumps(told))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_all_ranks_take_the_largest_that_fits_and_try_it_once(tmp_path: Path) -> None:
    said = on_ranks(2, start_three_times, str(tmp_path))
    saved = json.loads((tmp_path / FILE).read_text())
    assert saved["for"]["compile"] is False  # it changes what fits
    best, tried = saved["micro_batch"], {int(micro): peak for micro, peak in saved["tried"].items()}
    assert best in CANDIDATES and tried[best] < LIMIT_GB * 1e9
    assert tried[512] is None, "too much memory for this test to be one"
    assert tried[CANDIDATES[CANDIDATES.index(best) + 1]] is None
    ranks = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    assert ranks[0] == ranks[1]
    expected = {"global_batch": 1024, "micro_batch": best, "accumulation": 512 // best, "world_size": 2, "norm_group": 256}
    assert ranks[0]["plans"] == [expected, expected]
    # The second start took what the first had found; the third, whose groups are others, tried anew.
    assert said.count("trying which of 128, 256, 512 fit") == 1
    assert said.count("trying which of 256, 512 fit") == 1
    assert f"batch.micro_batch=auto: {best}, whose steps take" in said
    assert "not even 256 fit into batch.memory_gb=0.01" in ranks[0]["refused"]
    assert "batch.norm_group=512" in ranks[0]["refused"]


def test_free_memory_is_what_the_machine_has_at_most() -> None:
    total = int(Path("/proc/meminfo").read_text().split()[1]) * 1024
    assert 0 < free_memory() <= total
