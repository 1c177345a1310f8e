"""The least configuration of a training."""

from dataclasses import replace
from pathlib import Path

from model.config import ModelConfig
from pipeline.checkpoint.retention import CheckpointConfig
from pipeline.config import RunConfig
from pipeline.data.loader import DataConfig
from pipeline.engine.batch import BatchConfig


def small_config(run: Path, shards: Path, images: int = 1000) -> RunConfig:
    config = RunConfig(
        run=str(run), total_images=images, model=ModelConfig(32, 4), data=DataConfig(uri=str(shards)), batch=BatchConfig(8, 8)
    )
    return replace(config, checkpoint=CheckpointConfig(uri=str(run.parent / "checkpoints")))
