"""Which checkpoints stay when another one is saved."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import torch

from pipeline import storage
from pipeline.checkpoint import format, pruning
from pipeline.checkpoint.format import Checkpoint, Progress, commit, committed, folder_name, newest
from pipeline.checkpoint.pruning import save
from pipeline.checkpoint.rank_files import write_part, write_state
from pipeline.checkpoint.retention import CheckpointConfig
from pipeline.engine.slices import Slice, whole
from tests.support.checkpoints import assert_whole, damage, save_at, tensors
from tests.support.servers import S3Server


def test_what_is_kept_beside_the_newest(tmp_path: Path) -> None:
    """Every 300 images' first, and the best by what `biggan evaluate` has left beside it."""
    uri = str(tmp_path)
    config = CheckpointConfig(every=100, keep=2, keep_every=300, keep_best="fid")
    fids = {100: 9.0, 200: 3.0, 400: 5.0}
    for images in range(100, 1100, 100):
        save(uri, Progress(images), tensors(images), {}, keep=100)
        if images in fids:
            storage.write_bytes(f"{uri}/{images:010d}/{format.EVALUATION}", json.dumps({"FID[clf]": fids[images]}).encode())
        pruning.retain(uri, format.load(f"{uri}/{images:010d}"), config)
    assert [c.images for c in committed(uri)] == [1000, 900, 600, 300, 200]
    pruning.retain(uri, format.load(f"{uri}/{1000:010d}"), replace(config, keep_every=None, keep_best=None))
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
            storage.write_bytes(f"{uri}/{images:010d}/{format.EVALUATION}", json.dumps(document).encode())
    pruning.retain(uri, format.load(f"{uri}/{600:010d}"), CheckpointConfig(every=100, keep=2, keep_best=figure))
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


def saved_by(run: str | None, uri: Path, images: int, attempt: int) -> Checkpoint:
    """Commit a checkpoint as start `attempt` of the training `run` does."""
    folder = str(uri / folder_name(images, attempt))
    slices = [Slice(s.name, s.shape, 0, s.data) for s in whole({"w": torch.full((4,), float(images))})]
    files = write_part(folder, "ema", 0, slices) | write_state(folder, Progress(images), {"run": run} if run else {})
    return commit(folder, files, {"ema": {"w": [4]}})


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_only_what_this_run_has_saved_is_removed(tmp_path: Path) -> None:
    """Folders of a user whose names are dates, other runs' checkpoints, links: they stay, whole, and are told."""
    uri, elsewhere = tmp_path / "results", tmp_path / "elsewhere"
    foreign = {
        "1700000000/paper.csv": b"1",
        "20240930123000/paper.csv": b"2",
        "0000000010-0001/state.json": b'{"of": "another program"}',
        "0000000020-0001/generator.rank00000.safetensors": b"no tensors at all",
        "0000000040/ema.rank00000.safetensors": b"\x08" + bytes(7) + b"{       ",  # right, but no training makes this name
    }
    for name, data in foreign.items():
        (uri / name).parent.mkdir(parents=True)
        (uri / name).write_bytes(data)
    (uri / "1600000000").mkdir()
    saved_by("other", uri, 110, 1)
    saved_by(None, uri, 115, 0)  # an import
    saved_by("mine", elsewhere, 117, 1)
    (uri / "0000000117-0001").symlink_to(elsewhere / "0000000117-0001")
    before = content(tmp_path)
    for images in (50, 60, 120):
        saved_by("mine", uri, images, 1)
    (uri / "0000000060-0001" / "notes.txt").write_text("beside ours")
    killed = uri / "0000000070-0002"  # while it was saved
    killed.mkdir()
    for name in ("ema.rank00000.safetensors", "state.json"):
        (killed / name).write_bytes((uri / "0000000050-0001" / name).read_bytes())
    (killed / ".ema.rank00001.safetensors.0123abcd.tmp").touch()
    last = saved_by("mine", uri, 130, 2)
    told = pruning.retain(str(uri), last, CheckpointConfig(every=1, keep=2))
    assert {name: data for name, data in content(tmp_path).items() if name in before} == before
    assert [(c.images, c.run()) for c in committed(str(uri))][:2] == [(130, "mine"), (120, "mine")]
    assert not (uri / "0000000050-0001").exists() and not killed.exists()
    assert content(uri / "0000000060-0001") == {"notes.txt": b"beside ours"}, "ours go, and the folder stays for the rest"
    assert {Path(folder).name for folder in told} == {name.partition("/")[0] for name in foreign} | {
        *("1600000000", "0000000110-0001", "0000000115", "0000000117-0001")
    }


def test_the_same_holds_in_a_bucket(s3: S3Server) -> None:
    uri = f"{s3.uri}/results"
    theirs = {f"{uri}/1700000000/paper.csv": b"1", f"{uri}/0000000100/notes.txt": b"2", f"{uri}/0000000200.csv": b"3"}
    for place, data in theirs.items():
        storage.write_bytes(place, data)
    save_at(uri, 100, 200, 300)
    assert [c.images for c in committed(uri)] == [300, 200]
    assert {place: storage.read_bytes(place) for place in theirs} == theirs
    assert storage.names(f"{uri}/0000000100") == ["notes.txt"]
