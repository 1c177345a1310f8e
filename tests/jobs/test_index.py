import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from jobs.cli import main
from pipeline.cluster import launch
from pipeline.data.manifest import dump_manifest, load_manifest
from pipeline.errors import ConfigError
from tests.support.mistakes import refusal
from tests.support.tars import GOOD, picture_of, write_tar
from tests.support.tiny_runs import TINY, disk, remount


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


def test_a_pass_that_stops_and_one_that_leaves_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What the refusal advises works as it is typed, and says what it cost."""
    folder = tmp_path / "my tars"
    write_tar(folder / "0.tar", [*GOOD, ("b.png", b"<html>"), ("b.cls", b"1"), ("c.png", picture_of(2)), ("c.cls", b"2")])
    (folder / "1.tar").write_bytes(b"")
    (folder / "0.parquet").touch()
    assert main(["index", str(folder)]) == 65
    *notes, last = capsys.readouterr().err.splitlines()
    assert "--on-error skip to leave out 1 of 3 samples and 1 of 2 shards" in last and last.startswith("biggan: error: ")
    assert "1 sample with a broken image: replace it" in notes and any("1.tar has 0 bytes" in note for note in notes)
    assert sorted(path.name for path in folder.iterdir()) == ["0.parquet", "0.tar", "1.tar"]
    assert main(["index", str(folder), "--on-error", "skip"]) == 0
    said = capsys.readouterr().out
    assert "2 images, RGB 16 x 16, 3 classes, 1 shard" in said
    assert f"left out: 1 sample with a broken image, 1 damaged shard; {folder}/index-report.json lists them" in said
    assert "passed over beside the tars: .parquet (1)" in said
    assert "1 class has no image: 0; if labels count from 1, add --renumber" in said
    assert main(["index", str(folder), "--on-error", "skip", "--renumber", "--out", str(tmp_path / "o")]) == 0
    assert load_manifest(str(tmp_path / "o")).classes == ("1", "2")


def test_train_names_classes_without_images(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also those of an index that an earlier version made without a word; once, before anything else."""

    def enough(run: Path) -> None:
        raise ConfigError("enough")

    copy = Path(shutil.copytree(shards, tmp_path / "copy"))
    manifest = replace(load_manifest(str(copy)), class_counts=(0, 128, 64, 64))
    (copy / "manifest.json").write_bytes(dump_manifest(manifest))
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY | {"data": {"uri": str(copy)}}))
    monkeypatch.setattr(launch, "forget_stop", enough)  # what follows
    assert main(["train", str(tmp_path / "tiny.yaml"), f"run={tmp_path / 'run'}"]) == 78
    assert capsys.readouterr().err.splitlines() == ["biggan: warning: 1 class has no image: bars", "biggan: error: enough"]


def test_a_read_only_disk_is_noticed_before_the_tars_are_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with disk(tmp_path / "disk", "1m") as folder:
        (folder / "0.tar").write_bytes(b"damaged, which would be said if it were read")
        remount(folder, "ro")
        code, line = refusal(capsys, "index", str(folder))
    assert code == 78 and f"cannot write {folder}: Read-only file system; add --out DIR" in line


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["nowhere"], "no shards at nowhere"),
        (["TARS", "--threads", "0"], "--threads 0"),
        (["TARS", "--label", "folder"], "--label folder"),
        (["TARS", "--classes", "nofile"], "--classes nofile"),
        (["TARS", "--label", "name"], "has no label"),
        (["TARS", "--classes", __file__], "is empty: write a name for label"),
        (["http://127.0.0.1:1/{000..001}.tar"], "HTTP is read only: add --out DIR"),
    ],
)
def test_bad_input(tars: Path, capsys: pytest.CaptureFixture[str], argv: list[str], says: str) -> None:
    before = sorted(tars.iterdir())
    code, line = refusal(capsys, "index", *(str(tars) if part == "TARS" else part for part in argv))
    assert code == 78 and says in line
    assert sorted(tars.iterdir()) == before
