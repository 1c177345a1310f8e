import json
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from model.config import ModelConfig
from pipeline import variables
from pipeline.checkpoint import pruning
from pipeline.checkpoint.format import Progress
from pipeline.config import RunConfig
from pipeline.data.loader import DataConfig
from pipeline.data.manifest import Manifest, load_manifest
from pipeline.engine.batch import BatchConfig
from pipeline.errors import ConfigError
from pipeline.runs.run_folder import (
    RunState,
    as_begun,
    check_model,
    load_run_config,
    locate,
    prepare,
    read_identity,
    read_status,
    write_status,
)
from pipeline.runs.trusted_places import checkpoint_uri


@pytest.fixture
def manifest(shards: Path) -> Manifest:
    return load_manifest(str(shards))


@pytest.fixture
def config(tmp_path: Path, shards: Path) -> RunConfig:
    return RunConfig(
        run=str(tmp_path / "run"),
        total_images=1000,
        model=ModelConfig(32, 4),
        data=DataConfig(uri=str(shards)),
        batch=BatchConfig(8, 8),
    )


def test_a_run_is_found_where_it_was_moved_to(config: RunConfig, manifest: Manifest, tmp_path: Path) -> None:
    prepare(config, manifest)
    pruning.save(checkpoint_uri(config), Progress(100), {"generator": {"w": torch.ones(2)}}, {}, keep=2)
    (tmp_path / "run").rename(tmp_path / "moved")
    assert locate(str(tmp_path / "moved")).uri == str(tmp_path / "moved/checkpoints/0000000100")


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_second_start_finds_the_same_run(config: RunConfig, manifest: Manifest) -> None:
    folder = Path(config.run)
    assert prepare(config, manifest) == []
    before = content(folder)
    assert prepare(config, manifest) == []
    assert content(folder) == before
    assert load_run_config(folder) == config
    assert read_identity(folder)["dataset"] == manifest.fingerprint


def test_two_runs_are_two(config: RunConfig, manifest: Manifest, tmp_path: Path) -> None:
    other = replace(config, run=str(tmp_path / "other"))
    prepare(config, manifest)
    prepare(other, manifest)
    assert read_identity(Path(config.run))["uid"] != read_identity(Path(other.run))["uid"]


def test_changes_are_told_and_kept(config: RunConfig, manifest: Manifest) -> None:
    prepare(config, manifest)
    changed = replace(config, total_images=2000, batch=replace(config.batch, micro_batch=4))
    assert prepare(changed, manifest) == ["batch.micro_batch: None -> 4", "total_images: 1000 -> 2000"]
    assert prepare(changed, manifest) == []
    assert load_run_config(config.run) == changed


def test_a_run_keeps_the_precision_that_auto_was(config: RunConfig, manifest: Manifest) -> None:
    auto = replace(config, precision="auto")
    prepare(auto, manifest)
    assert load_run_config(config.run).precision == "auto"  # nothing has been measured yet
    assert prepare(replace(config, precision="fp32"), manifest) == ["precision: auto -> fp32"]
    assert prepare(auto, manifest) == []
    assert load_run_config(config.run).precision == as_begun(auto).precision == "fp32"
    assert prepare(replace(config, precision="bf16"), manifest) == ["precision: fp32 -> bf16"]
    assert as_begun(auto).precision == "bf16"


@pytest.mark.parametrize(
    ("part", "change"),
    [("model", {"ch": 8}), ("", {"seed": 1}), ("optim", {"optimizer": "sgd"}), ("data", {"lanes": 24})],
)
def test_what_weights_or_order_hang_on_cannot_change(
    config: RunConfig, manifest: Manifest, part: str, change: dict[str, Any]
) -> None:
    prepare(config, manifest)
    before = content(Path(config.run))
    changed = replace(config, **({part: replace(getattr(config, part), **change)} if part else change))
    ((name, value),) = change.items()
    with pytest.raises(ConfigError, match=f"{name}={value} but this run began with .*name another run="):
        prepare(changed, manifest)
    assert content(Path(config.run)) == before


def test_a_run_of_an_earlier_version_keeps_its_discriminator(config: RunConfig, manifest: Manifest) -> None:
    """Typed widths meant three halvings at 32 px then, and its config.yaml says nothing of halvings."""
    typed = replace(config, model=replace(config.model, d_widths=(4, 4, 4, 4)))
    prepare(typed, manifest)
    saved = Path(config.run, "config.yaml")
    assert load_run_config(config.run).model.d_keep == 2
    saved.write_text(saved.read_text().replace("  d_halvings: null\n", ""))
    assert load_run_config(config.run).model.d_keep == 3
    assert prepare(typed, manifest) == [] and load_run_config(config.run).model.d_halvings == 3
    assert prepare(typed, manifest) == []


def test_a_run_keeps_its_images(config: RunConfig, manifest: Manifest, shards_grey: Path) -> None:
    prepare(config, manifest)
    before = content(Path(config.run))
    other = replace(config, data=DataConfig(uri=str(shards_grey)))
    with pytest.raises(ConfigError, match="holds other shards than"):
        prepare(other, load_manifest(str(shards_grey)))
    assert content(Path(config.run)) == before


def test_the_same_images_may_move(config: RunConfig, manifest: Manifest) -> None:
    prepare(config, manifest)
    assert prepare(replace(config, data=DataConfig(uri="s3://bucket/shards")), manifest) == [
        f"data.uri: {config.data.uri} -> s3://bucket/shards"
    ]


def test_a_run_may_move(config: RunConfig, manifest: Manifest, tmp_path: Path) -> None:
    prepare(config, manifest)
    uid = read_identity(Path(config.run))["uid"]
    Path(config.run).rename(tmp_path / "moved")
    assert prepare(replace(config, run=str(tmp_path / "moved")), manifest) == []
    assert read_identity(tmp_path / "moved")["uid"] == uid


def test_somebody_elses_files_are_not_taken_for_a_run(config: RunConfig, manifest: Manifest) -> None:
    folder = Path(config.run)
    folder.mkdir()
    (folder / "thesis.tex").write_text("mine")
    with pytest.raises(ConfigError, match=r"is not the folder of a run \(it holds thesis\.tex\): set run=NEW_RUN$"):
        prepare(config, manifest)
    assert content(folder) == {"thesis.tex": b"mine"}


def test_a_file_is_no_folder(config: RunConfig, manifest: Manifest) -> None:
    Path(config.run).write_text("mine")
    with pytest.raises(ConfigError, match="is not a folder: set run=NEW_RUN"):
        prepare(config, manifest)
    assert Path(config.run).read_text() == "mine"


def test_a_kill_inside_the_first_write_does_not_block_the_run(config: RunConfig, manifest: Manifest) -> None:
    Path(config.run).mkdir()
    Path(config.run, ".run.json.0123abcd.tmp").write_text('{"ui')
    assert prepare(config, manifest) == []


def test_a_folder_without_a_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"{tmp_path} is not the folder of a run"):
        load_run_config(tmp_path)


@pytest.mark.parametrize(("key", "value"), [("num_classes", 10), ("resolution", 64), ("channels", 1)])
def test_networks_for_other_images_are_refused(config: RunConfig, manifest: Manifest, key: str, value: int) -> None:
    check_model(config, manifest)
    right = getattr(config.model, key)
    with pytest.raises(ConfigError, match=f"model.{key}={value} but the shards at .* have {right}: set model.{key}={right}"):
        check_model(replace(config, model=replace(config.model, **{key: value})), manifest)


def test_status_goes_to_the_folder_and_to_the_launcher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    second = tmp_path / "second"
    monkeypatch.setenv(variables.STATUS, str(second))
    status = RunState("failed", 64, 74, "the disk is full")
    write_status(tmp_path, status)
    assert read_status(tmp_path / "status.json") == read_status(second) == status
    assert json.loads(second.read_text())["exit_code"] == 74


def test_a_status_is_whole_whenever_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several ranks write it when they fail, and the first that has ended gets the others killed."""
    second = tmp_path / "second"
    monkeypatch.setenv(variables.STATUS, str(second))
    write_status(tmp_path, RunState("training", 0))
    writer = threading.Thread(target=lambda: [write_status(tmp_path, RunState("failed", i, 65, "why")) for i in range(50)])
    writer.start()
    while writer.is_alive():
        assert read_status(second) and read_status(tmp_path / "status.json")
    writer.join()


@pytest.mark.parametrize("text", [None, "", '{"state": "runn'])
def test_a_status_that_was_never_written_whole_is_none(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "status.json").write_text(text)
    assert read_status(tmp_path / "status.json") is None


def test_images_may_be_larger_than_the_model_if_that_is_said(config: RunConfig, manifest: Manifest) -> None:
    check_model(config, manifest)
    with pytest.raises(ConfigError, match=r"data.resolution=64 but model.resolution=32: set data.resolution=32"):
        check_model(replace(config, data=replace(config.data, resolution=64)), manifest)
    with pytest.raises(ConfigError, match=r"batch.global_batch=512 but the shards have 256 images: set batch.global_batch=256"):
        check_model(replace(config, batch=BatchConfig(512, 8)), manifest)
    mixed = replace(manifest, resolution=None)
    with pytest.raises(ConfigError, match=r"have different sizes: set data.resolution=N"):
        check_model(config, mixed)
    check_model(replace(config, data=replace(config.data, resolution=32)), mixed)
    with pytest.raises(ConfigError, match=r"shards at .* have 64: set model.resolution=64 or data.resolution=32 \(to resample"):
        check_model(config, replace(manifest, resolution=64))


def test_a_folder_that_is_only_read_names_no_cache(config: RunConfig, manifest: Manifest, tmp_path: Path) -> None:
    """It may be somebody else's: commands that read it make and remove nothing at a place that it names."""
    prepare(replace(config, data=replace(config.data, cache=str(tmp_path / "theirs"))), manifest)
    found = load_run_config(config.run)
    assert found.data.cache is None and found.data.make_cache() is None
    assert "theirs" in Path(config.run, "config.yaml").read_text() and not (tmp_path / "theirs").exists()
