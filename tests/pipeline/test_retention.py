"""Which checkpoints stay when another one is saved."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest

from pipeline import checkpoint, pruning, storage
from pipeline.checkpoint import Progress, committed, newest
from pipeline.pruning import save
from pipeline.retention import CheckpointConfig
from tests.pipeline.test_checkpoint import assert_whole, damage, save_at, tensors


def test_what_is_kept_beside_the_newest(tmp_path: Path) -> None:
    """Every 300 images' first, and the best by what `biggan evaluate` has left beside it."""
    uri = str(tmp_path)
    config = CheckpointConfig(every=100, keep=2, keep_every=300, keep_best="fid")
    fids = {100: 9.0, 200: 3.0, 400: 5.0}
    for images in range(100, 1100, 100):
        save(uri, Progress(images), tensors(images), {}, keep=100)
        if images in fids:
            storage.write_bytes(f"{uri}/{images:010d}/{checkpoint.EVALUATION}", json.dumps({"FID[clf]": fids[images]}).encode())
        pruning.retain(uri, checkpoint.load(f"{uri}/{images:010d}"), config)
    assert [c.images for c in committed(uri)] == [1000, 900, 600, 300, 200]
    pruning.retain(uri, checkpoint.load(f"{uri}/{1000:010d}"), replace(config, keep_every=None, keep_best=None))
    assert [c.images for c in committed(uri)] == [1000, 900]


@pytest.mark.parametrize(("figure", "best"), [("fid", [100, 400]), ("accuracy", [300, 200])])
def test_figures_of_different_recipes_are_not_compared(
    tmp_path: Path, figure: Literal["fid", "accuracy"], best: list[int]
) -> None:
    uri = str(tmp_path)
    found = {100: ("a", 2.0, 0.7), 200: ("b", 9.0, 0.9), 300: ("a", 3.0, 0.8), 400: ("b", 8.0, 0.6)}
    for images in range(100, 700, 100):
        save(uri, Progress(images), tensors(images), {}, keep=100)
        if images in found:
            recipe, fid, accuracy = found[images]
            document = {"recipe_id": recipe, "FID[x]": fid, "accuracy": accuracy}
            storage.write_bytes(f"{uri}/{images:010d}/{checkpoint.EVALUATION}", json.dumps(document).encode())
    pruning.retain(uri, checkpoint.load(f"{uri}/{600:010d}"), CheckpointConfig(every=100, keep=2, keep_best=figure))
    assert [c.images for c in committed(uri)] == sorted([600, 500, *best], reverse=True)


def test_damaged_newer_ones_never_push_out_what_training_has_saved_since(tmp_path: Path) -> None:
    save_at(str(tmp_path), 100, 200, 300, keep=3)
    for name in ("0000000200", "0000000300"):
        damage(tmp_path / name / "ema.rank00000.safetensors")
    save_at(str(tmp_path), 150)
    assert_whole(newest(str(tmp_path)), 150)
    save_at(str(tmp_path), 250, 350)
    assert [c.images for c in committed(str(tmp_path)) if not c.fault()] == [350, 250], "two that are intact"
    assert storage.names(str(tmp_path)) == [f"{images:010d}" for images in (200, 250, 300, 350)], "damaged ones stay"


def test_other_files_beside_checkpoints_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("mine")
    save_at(str(tmp_path), 100, 200, 300)
    assert (tmp_path / "notes" / "a.txt").read_text() == "mine"
