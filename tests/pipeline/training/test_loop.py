"""What the loop decides by itself; whole trainings are in tests/jobs/test_train.py."""

from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model.config import ModelConfig
from pipeline.checkpoint import pruning
from pipeline.checkpoint.format import Progress
from pipeline.data.loader import MicroBatch
from pipeline.data.manifest import load_manifest
from pipeline.errors import ConfigError
from pipeline.runs.resume import find_checkpoint
from pipeline.runs.run_folder import prepare, read_identity
from pipeline.runs.trusted_places import checkpoint_uri
from pipeline.training.loop import _due
from pipeline.training.reals import on_device
from tests.support.small_config import small_config


def test_checkpoints_of_another_run_are_not_taken_up(tmp_path: Path, shards: Path) -> None:
    mine, other = small_config(tmp_path / "mine", shards), small_config(tmp_path / "other", shards)
    another = r"holds the checkpoints of another run than run=.*other: name another place"
    prepare(mine, load_manifest(str(shards)))
    with pytest.raises(ConfigError, match=another):
        prepare(other, load_manifest(str(shards)))
    assert not Path(other.run).exists()
    for name in ("run.json", "config.yaml"):  # where something else has written, there is none
        Path(checkpoint_uri(mine), name).unlink()
    prepare(other, load_manifest(str(shards)))
    assert find_checkpoint(mine) is None
    weights = {"generator": {"w": torch.ones(2)}}
    state = {"run": read_identity(tmp_path / "mine")["uid"], "model": asdict(mine.model)}
    pruning.save(checkpoint_uri(mine), Progress(8), weights, state, 2)
    found = find_checkpoint(mine)
    assert found and found.images == 8
    with pytest.raises(ConfigError, match=another):
        find_checkpoint(other)
    pruning.save(checkpoint_uri(mine), Progress(16), weights, state | {"model": asdict(ModelConfig(32, 4, ch=8))}, 2)
    with pytest.raises(ConfigError, match=r"checkpoints: its networks are others than the configuration's: set model\.ch=8$"):
        find_checkpoint(mine)


@given(every=st.integers(1, 300), batch=st.integers(1, 100))
def test_each_multiple_and_the_end_are_due_once_at_any_batch(every: int, batch: int) -> None:
    config, due, images = small_config(Path("run"), Path("shards")), [], 0
    while images < 1000:
        before, images = images, images + batch
        if _due(every, Progress(before), Progress(images), config):
            due.append(images)
        assert not _due(0, Progress(before), Progress(images), config)
    first_at_or_after = {-(-multiple // batch) * batch for multiple in range(every, 1000, every)}
    assert due == sorted(first_at_or_after | {images})


def test_pixels_become_minus_one_to_one_and_mirrored_ones_are_mirrored() -> None:
    pixels = torch.tensor([0, 51, 255], dtype=torch.uint8).expand(2, 1, 1, 3)
    numbers = torch.arange(2)
    x, y = on_device(
        MicroBatch(
            images=pixels,
            labels=numbers + 5,
            samples=numbers,
            epochs=numbers,
            positions=numbers,
            flips=torch.tensor([False, True]),
            valid=numbers > -1,
        ),
        torch.device("cpu"),
    )
    torch.testing.assert_close(x[:, 0, 0], torch.tensor([[-1.0, -0.6, 1.0], [1.0, -0.6, -1.0]]))
    assert y.tolist() == [5, 6]
