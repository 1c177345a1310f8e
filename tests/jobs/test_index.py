import shutil
from pathlib import Path

import pytest

from jobs.cli import main
from pipeline.index import load_manifest
from tests.jobs.test_register import refusal


@pytest.fixture
def tars(shards: Path, tmp_path: Path) -> Path:
    """Packed shards as a stranger would have them: tars alone."""
    (tmp_path / "tars").mkdir()
    for path in shards.glob("*.tar"):
        shutil.copy(path, tmp_path / "tars")
    return tmp_path / "tars"


def test_index_then_verify_then_train_on_them(
    shards: Path, tars: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = tmp_path / "names.txt"
    names.write_text("bars\nblob\nchecks\nstripes\n")
    assert main(["index", str(tars), "--classes", str(names)]) == 0
    assert "256 images, RGB 32 x 32, 4 classes" in capsys.readouterr().out
    assert load_manifest(str(tars)).fingerprint == load_manifest(str(shards)).fingerprint
    assert main(["index", str(tars), "--verify"]) == 0
    assert "every checksum is right" in capsys.readouterr().out
    shard = next(tars.glob("*.tar"))
    data = bytearray(shard.read_bytes())
    data[5000] ^= 1
    shard.write_bytes(data)
    assert main(["index", str(tars), "--verify"]) == 65
    said = capsys.readouterr().err
    assert shard.name in said and "biggan: error:" in said


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["nowhere"], "no shards at nowhere"),
        (["TARS", "--threads", "0"], "--threads 0"),
        (["TARS", "--label", "folder"], "--label folder"),
        (["TARS", "--classes", "nofile"], "--classes nofile"),
        (["TARS", "--label", "name"], "has no label"),
    ],
)
def test_bad_input(tars: Path, capsys: pytest.CaptureFixture[str], argv: list[str], says: str) -> None:
    before = sorted(tars.iterdir())
    code, line = refusal(capsys, "index", *(str(tars) if part == "TARS" else part for part in argv))
    assert code == 78 and says in line
    assert sorted(tars.iterdir()) == before
