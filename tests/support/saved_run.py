"""A run's folder as a training leaves it, with weights that no training has touched: takes a second to make."""

import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Literal

import pytest
import torch

from model.biggan import Generator
from model.ema import EMA
from pipeline.checkpoint import pruning
from pipeline.checkpoint.format import Progress, network_tensors
from pipeline.config import RunConfig, build, flatten
from pipeline.data.manifest import load_manifest
from pipeline.generation import load
from pipeline.runs.run_folder import prepare, read_identity
from pipeline.runs.trusted_places import checkpoint_uri
from pipeline.tracking.tracker import Tracker

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def save_run(
    folder: Path,
    shards: Path,
    *,
    store: Path | None = None,
    uri: str | None = None,
    mode: Literal["auto", "off"] = "auto",
) -> RunConfig:
    """Make a run of `shards`, with a checkpoint at 4096 images, tracked at `uri` or in a copy of `store`."""
    manifest = load_manifest(str(shards))
    shape = {"resolution": 32, "num_classes": len(manifest.classes), "channels": manifest.channels}
    tree = {
        "run": str(folder),
        "total_images": 8192,
        "model": {**shape, "ch": 2, "shared_dim": 8},
        "data": {"uri": str(shards)},
        "batch": {"global_batch": 8, "norm_group": 8},
        "tracking": {"uri": uri, "mode": mode},
    }
    config = build(tree)
    prepare(config, manifest)
    if store:
        shutil.copy(store, folder / "mlflow.db")
    save_checkpoint(config, 4096)
    tags = {"biggan.git_commit": COMMIT, "biggan.dataset_fingerprint": manifest.fingerprint}
    tracker = Tracker(config.tracking, folder, read_identity(folder)["uid"], flatten(config), tags)
    tracker.metrics({"loss/d": 0.5}, 4096)
    tracker.close("FINISHED")
    return config


def save_checkpoint(config: RunConfig, images: int, *, diverged: bool = False) -> None:
    """Add a checkpoint at `images`, with weights of its own, of which one is NaN if its training has `diverged`."""
    torch.manual_seed(images)
    generator = Generator(config.model)
    if diverged:
        generator.output.bias.data[0] = torch.nan
    tensors = {"generator": network_tensors(generator), "ema": EMA(dict(generator.named_parameters())).averages}
    state = {"model": asdict(config.model), "classes": list(load_manifest(config.data.uri).classes)}
    pruning.save(checkpoint_uri(config), Progress(images), tensors, state, keep=2)


def short_standing_statistics(patch: pytest.MonkeyPatch) -> None:
    """Pool standing statistics over 32 samples instead of 2,048: other numbers, the same code, a tenth of the time."""
    patch.setattr(load, "STANDING_SAMPLES", 32)
