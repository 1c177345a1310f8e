"""What a user gets wrong with `biggan train`, and what the machine does: one line, and nothing half made."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from jobs.cli import main
from jobs.train import as_known
from pipeline.config import load_config
from pipeline.data.manifest import load_manifest
from pipeline.runs.resume import note_saved
from pipeline.runs.run_folder import prepare
from tests.support.tiny_runs import Resumed, assert_one_line, disk, fill, remount, train


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["optim.g_lrr=1"], ["optim.g_lrr", "optim.g_lr?"]),
        (
            ["batch.global_batch=33", "batch.micro_batch=null"],
            ["batch.global_batch=33", "2 ranks", "batch.global_batch=32 or batch.global_batch=48"],
        ),
        (["batch.global_batch=40"], ["batch.norm_group=16", "batch.global_batch=32 or batch.global_batch=48"]),
        (["batch.norm_group=12"], ["batch.norm_group=12", "set batch.norm_group=8 or batch.norm_group=16"]),
        (["model.num_classes=10"], ["model.num_classes=10", "have 4", "set model.num_classes=4"]),
        (["model.channels=1"], ["model.channels=1", "have 3"]),
        (["model.resolution=64", "model.ch=8", "model.z_dim=20"], ["model.resolution=64", "have 32"]),
        (["data.uri=nowhere"], ["no shards at /", "/nowhere: pack", "biggan shard"]),
        (["optim.g_lr=fast"], ["optim.g_lr"]),
        (["total_images"], ["key=value"]),
        (["compile=true", "zero.stage=3"], ["compile=true", "set compile=false or zero.stage=2"]),
        (["compile=true", "objective.r1=1"], ["compile=true", "set compile=false or objective.r1=0"]),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(
    tiny: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], parts: list[str]
) -> None:
    code = main(["train", tiny, f"run={tmp_path / 'run'}", *arguments])
    assert_one_line(capsys.readouterr().err, code, 78, *parts)
    assert not (tmp_path / "run").exists()


def test_memory_that_is_not_enough_is_a_matter_of_the_micro_batch(tiny: str) -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60)
    known = as_known(caught.value, load_config(tiny, ["run=r", "batch.micro_batch=8"]))
    assert known and known.exit_code == 78
    assert "batch.micro_batch=8: set batch.micro_batch=auto or a smaller one" in str(known)
    assert as_known(ValueError("a bug"), load_config(tiny, ["run=r"])) is None


@pytest.mark.slow
def test_a_compiler_that_fails_is_told_in_a_line(tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "/bin/false")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    done = train(tiny, tmp_path / "run", "compile=true")
    assert_one_line(done.stderr, done.returncode, 78, "compile=true: torch.compile failed: ", "set compile=false, or fix it")


def test_a_missing_config(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["train", str(tmp_path / "nowhere.yaml")])
    assert_one_line(capsys.readouterr().err, code, 78, "nowhere.yaml", "fashion-mnist")


def test_a_damaged_manifest(tiny: str, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = (shards / "manifest.json").read_bytes()
    (tmp_path / "manifest.json").write_bytes(data[: len(data) // 2])
    code = main(["train", tiny, f"run={tmp_path / 'run'}", f"data.uri={tmp_path}"])
    assert_one_line(capsys.readouterr().err, code, 65, "manifest.json is damaged", "--overwrite")
    assert not (tmp_path / "run").exists()


def test_a_change_that_cannot_be_resumed(resumed: Resumed, tiny: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = (resumed.run / "config.yaml").read_bytes()
    code = main(["train", tiny, f"run={resumed.run}", "seed=1"])
    assert_one_line(capsys.readouterr().err, code, 78, "seed=1", "began with 0", "run=")
    assert (resumed.run / "config.yaml").read_bytes() == before


def test_a_run_folder_that_cannot_be_written(tiny: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if os.geteuid():
        place = tmp_path / "closed"
        place.mkdir(mode=0o555)
    else:
        place = Path("/sys")  # where not even root can make a folder
    code = main(["train", tiny, f"run={place / 'run'}"])
    assert_one_line(capsys.readouterr().err, code, 78, f"{place}/run", "name another place")


def test_a_disk_that_is_read_only_or_full(
    resumed: Resumed, tiny: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with disk(tmp_path / "disk", "64k") as folder:
        fill(folder)
        code = main(["train", tiny, f"run={folder / 'run'}"])
        assert_one_line(capsys.readouterr().err, code, 74, str(folder), "the disk is full", "free some space")
        assert not [path for path in folder.rglob("*") if path.is_file() and path.name != "filler"]

        (folder / "filler").unlink()
        for name in ("run.json", "config.yaml"):
            (folder / "run").mkdir(exist_ok=True)
            shutil.copy(resumed.run / name, folder / "run" / name)
        remount(folder, "ro")
        code = main(["train", tiny, f"run={folder / 'run'}", "total_images=512"])
        assert_one_line(capsys.readouterr().err, code, 78, str(folder), "Read-only file system")
        remount(folder, "rw")
        assert (folder / "run" / "config.yaml").read_bytes() == (resumed.run / "config.yaml").read_bytes()


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("harm", "code", "said"),
    [
        (lambda run: None, 65, "it was saved at image 64, but {run}/checkpoints has no checkpoint"),
        (lambda run: (run / "run.json").write_bytes(b""), 65, "{run}/run.json is empty"),
        (lambda run: (run / "config.yaml").write_bytes(b""), 65, "{run}/config.yaml is empty or damaged"),
    ],
)
def test_a_run_that_cannot_resume_is_one_line_and_changes_no_file(
    tiny: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    harm: Callable[[Path], object],
    code: int,
    said: str,
) -> None:
    run = tmp_path / "my run"
    config = load_config(tiny, [f"run={run}"])
    prepare(config, load_manifest(config.data.uri))
    note_saved(run, 64)
    harm(run)
    before = files(run)
    # Other keys than before: a start that is refused does not write them down.
    ended = main(["train", tiny, f"run={run}", f"checkpoint.uri={run}/checkpoints", "total_images=512"])
    assert_one_line(capsys.readouterr().err, ended, code, said.format(run=run))
    assert files(run) == before
