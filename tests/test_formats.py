"""What an earlier version wrote goes on working: shards with a relative `tars`, a run with checkpoints and an MLflow store.

`fixtures/formats/2026-11-30.tar.xz` was written by commit 4789229: 32 grey images in two tars, `biggan index tars --out idx`,
and `biggan train tiny.yaml run=run total_images=32`, all from the folder that holds them.
"""

import tarfile
from pathlib import Path

import pytest

from jobs.cli import main
from pipeline.data.manifest import load_manifest
from pipeline.runs.run_folder import read_identity, read_status
from tests.support.tiny_runs import train_forked

OLD = Path(__file__).parent / "fixtures" / "formats" / "2026-11-30.tar.xz"


@pytest.fixture
def old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of then, somewhere else, and the place where commands are typed."""
    with tarfile.open(OLD) as tar:
        tar.extractall(tmp_path, filter="data")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_old_shards_are_read_and_have_the_fingerprint_of_then(old: Path) -> None:
    assert main(["index", "idx", "--verify"]) == 0
    assert load_manifest("idx").fingerprint == "799e01b3bd667f2ed010f87dd189e6e5" == read_identity(old / "run")["dataset"]


@pytest.mark.slow
def test_an_old_run_is_told_drawn_and_resumed(old: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "run"]) == 0
    assert "32" in capsys.readouterr().out
    assert main(["checkpoint", "verify", "run"]) == 0
    assert main(["sample", "run", "samples.png", "--standing", "16"]) == 0
    assert (old / "samples.png").stat().st_size > 0
    uid = read_identity(old / "run")["uid"]
    said = train_forked("tiny.yaml", old / "run", ranks=1)
    assert "resuming at image 32 of 64" in said
    status = read_status(old / "run" / "status.json")
    assert status and (status.state, status.images) == ("finished", 64)
    assert read_identity(old / "run")["uid"] == uid
    assert main(["report", "run"]) == 0
