"""A run that was saved resumes, or stops with one line and keeps what is there; it begins anew only when it is told to."""

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
import yaml

from model.config import ModelConfig
from pipeline import storage
from pipeline.checkpoint import pruning
from pipeline.checkpoint.format import DAMAGED, SET_ASIDE, Progress, committed
from pipeline.checkpoint.retention import CheckpointConfig
from pipeline.config import RunConfig, located, to_yaml
from pipeline.data.loader import DataConfig
from pipeline.data.manifest import load_manifest
from pipeline.engine.batch import BatchConfig
from pipeline.errors import ConfigError, DataError
from pipeline.runs import resume
from pipeline.runs.resume import begin_anew, check_resumable, find_checkpoint, note_saved, saved_images
from pipeline.runs.run_folder import RunState, load_run_config, prepare, read_identity, write_status
from pipeline.runs.trusted_places import checkpoint_uri
from pipeline.tracking.journal import Journal, read
from pipeline.tracking.records import MetricsRecord

EMA = "ema.rank00000.safetensors"


def saved_run(run: Path, shards: Path, uri: str | None = None) -> RunConfig:
    """A run with checkpoints at 100 and 200 images, as a training leaves it."""
    config = RunConfig(
        run=str(run), total_images=1000, model=ModelConfig(32, 4), data=DataConfig(uri=str(shards)), batch=BatchConfig(8, 8)
    )
    config = replace(config, checkpoint=CheckpointConfig(every=50, uri=uri))
    prepare(config, load_manifest(str(shards)))
    save(config, 100, 200)
    write_status(run, RunState("running", 200))
    note_saved(run, 200)
    return config


def save(config: RunConfig, *images: int, keep: int = 2) -> None:
    state = {"run": read_identity(Path(config.run))["uid"], "model": asdict(config.model)}
    for number in images:
        tensors = {"ema": {"w": torch.full((64,), float(number))}, "generator": {"w": torch.zeros(3)}}
        pruning.save(checkpoint_uri(config), Progress(number), tensors, state, keep)


def hashes(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.rglob("*") if p.is_file()}


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:10])


@pytest.mark.parametrize(
    ("harm", "name", "said"),
    [
        (flip, EMA, f"200/{EMA} is damaged, 0000000100/{EMA} is damaged"),
        (cut, "state.json", "200/state.json is damaged"),
        (Path.unlink, EMA, f"200/{EMA} is missing"),
        (flip, "COMMIT.json", "200/COMMIT.json is damaged"),
        (Path.unlink, "COMMIT.json", "saved at image 200, but .* has only 0000000200, 0000000100 without COMMIT.json"),
        (shutil.rmtree, "", "saved at image 200, but .* has no checkpoint"),
    ],
)
def test_nothing_usable_is_refused_named_and_kept(
    tmp_path: Path, shards: Path, harm: Callable[[Path], None], name: str, said: str
) -> None:
    config = saved_run(tmp_path / "run", shards)
    for images in (100, 200):
        harm(tmp_path / "run" / "checkpoints" / f"{images:010d}" / name)
    before = hashes(tmp_path)
    with pytest.raises(
        DataError, match=f"^run={tmp_path}/run cannot resume: .*{said}.*pass --from-scratch .* set run="
    ) as told:
        find_checkpoint(config)
    assert told.value.exit_code == 65 and hashes(tmp_path) == before
    if harm != flip:  # which only reading shows
        with pytest.raises(DataError, match=f"^run={config.run} cannot resume"):
            check_resumable(config)
    (line,) = begin_anew(config)
    assert "beginning anew" in line
    prepare(config, load_manifest(str(shards)))
    assert find_checkpoint(config) is None and check_resumable(config) is None
    write_status(tmp_path / "run", RunState("running", 0))
    # What there was stays to the last byte, however far the run gets.
    save(config, *(n for n in range(50, 500, 50) if n not in (100, 200)))
    assert [c.images for c in committed(checkpoint_uri(config))] == [450, 400]
    now = hashes(tmp_path)
    kept = {path: digest for path, digest in before.items() if "/checkpoints/" in path}
    assert kept.items() <= now.items() and before["run/run.json"] == now["run/before-1/run.json"] != now["run/run.json"]
    assert (line := begin_anew(config)[0]).startswith("--from-scratch is not needed") and "0000000450" in line
    assert find_checkpoint(config).images == 450  # type: ignore[union-attr]


def test_what_was_never_saved_starts_at_image_0(tmp_path: Path, shards: Path) -> None:
    """A kill in the first save leaves a folder without COMMIT, and a status that is ahead of it."""
    config = saved_run(tmp_path / "run", shards)
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "0000000100")
    (tmp_path / "run" / "checkpoints" / "0000000200" / "COMMIT.json").unlink()
    note_saved(tmp_path / "run", 0)
    assert check_resumable(config) is None and find_checkpoint(config) is None and begin_anew(config) == []
    save(config, 150, 250)
    assert storage.names(checkpoint_uri(config)) == ["0000000150", "0000000250"], "the rest of the kill is cleared away"


def test_an_older_intact_one_is_taken_and_the_damaged_one_stays_until_it_is_restored(
    tmp_path: Path, shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = saved_run(tmp_path / "run", shards)
    damaged = tmp_path / "run" / "checkpoints" / "0000000200"
    whole = (damaged / EMA).read_bytes()
    flip(damaged / EMA)
    assert find_checkpoint(config).images == 100  # type: ignore[union-attr]
    assert capsys.readouterr().out == f"passing over a damaged checkpoint, which stays: {damaged}/{EMA} is damaged\n"
    save(config, 250)
    assert [c.images for c in committed(checkpoint_uri(config)) if not c.fault()] == [250, 100], "two that are intact"
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "0000000250")
    (damaged / EMA).write_bytes(whole)
    assert find_checkpoint(config).images == 200  # type: ignore[union-attr]
    assert not (damaged / DAMAGED).exists()


def test_a_changed_place_is_refused_with_the_old_one_and_nothing_is_written_there(tmp_path: Path, shards: Path) -> None:
    config = saved_run(tmp_path / "run", shards, uri=str(tmp_path / "first place"))
    before = hashes(tmp_path)
    moved = replace(config, checkpoint=replace(config.checkpoint, uri=str(tmp_path / "second")))
    with pytest.raises(DataError, match=f"set 'checkpoint.uri={tmp_path}/first place', pass --from-scratch"):
        check_resumable(moved)
    assert hashes(tmp_path) == before


def test_a_place_of_checkpoints_is_absolute_from_the_start(
    tmp_path: Path, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = located(saved_run(tmp_path / "run", shards, uri="ck"))
    prepare(config, load_manifest(str(shards)))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    assert find_checkpoint(load_run_config(config.run)).images == 200  # type: ignore[union-attr]


def test_beginning_anew_at_a_place_of_its_own_forgets_which_run_was_kept_there(tmp_path: Path, shards: Path) -> None:
    config = saved_run(tmp_path / "run", shards, uri=str(tmp_path / "ck"))
    for images in (100, 200):
        flip(tmp_path / "ck" / f"{images:010d}" / "state.json")
    Journal(tmp_path / "run").append(MetricsRecord(time=1, metrics={"loss/d": 1.0}, step=150))
    old = read_identity(tmp_path / "run")["uid"]
    begin_anew(config)
    prepare(config, load_manifest(str(shards)))
    assert json.loads((tmp_path / "ck" / "run.json").read_bytes())["uid"] == read_identity(tmp_path / "run")["uid"] != old
    assert all((tmp_path / "ck" / f"{images:010d}" / SET_ASIDE).exists() for images in (100, 200))
    assert Journal(tmp_path / "run").is_new("loss/d", 50), "early reports of the new training are written"
    record = next(read(tmp_path / "run" / "before-1"))[0]
    assert isinstance(record, MetricsRecord) and record.step == 150


@pytest.mark.parametrize("name", ["run.json", "config.yaml"])
@pytest.mark.parametrize("content", [b"", b"\0" * 100, b"[1", b"[]"])
def test_an_emptied_file_of_a_run_is_one_line(tmp_path: Path, shards: Path, name: str, content: bytes) -> None:
    config = saved_run(tmp_path / "run", shards)
    (tmp_path / "run" / name).write_bytes(content)
    before = hashes(tmp_path)
    with pytest.raises(DataError, match=f"^{tmp_path}/run/{name} is .*restore it from a copy"):
        prepare(config, load_manifest(str(shards)))
    assert hashes(tmp_path) == before


OLD_STATUS = {"state": "finished", "images": 200, "exit_code": 0, "message": ""}


def test_a_run_of_an_earlier_version_resumes_and_is_refused_alike(tmp_path: Path, shards: Path) -> None:
    """It has no saved.json, its lock holds a pid alone, and its configuration lacks keys that came later."""
    run, config = tmp_path / "run", saved_run(tmp_path / "run", shards)
    for name in ("saved.json", "status.json"):
        (run / name).unlink()
    tree = yaml.safe_load(to_yaml(config))
    old = {key: tree[key] for key in ("run", "total_images", "model", "batch", "seed", "precision")}
    old |= {"data": {"uri": str(shards), "lanes": 64}, "checkpoint": {"every": 50, "keep": 2, "uri": None}, "log_every": 64}
    (run / "config.yaml").write_text(yaml.safe_dump(old, sort_keys=False))
    (run / "status.json").write_text(json.dumps(OLD_STATUS))
    (run / "lock").write_text('{"pid": 1}')
    assert prepare(load_run_config(run), load_manifest(str(shards))) == []
    assert saved_images(run) == 200 and find_checkpoint(config).images == 200  # type: ignore[union-attr]
    resume.check_resumable(config)
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(DataError, match="saved at image 200"):
        check_resumable(config)


def test_another_training_s_checkpoints_are_refused_as_before(tmp_path: Path, shards: Path) -> None:
    config = saved_run(tmp_path / "run", shards)
    identity = read_identity(tmp_path / "run")
    (tmp_path / "run" / "run.json").write_text(json.dumps(identity | {"uid": "another"}))
    with pytest.raises(ConfigError, match="holds the checkpoints of another run"):
        find_checkpoint(config)
