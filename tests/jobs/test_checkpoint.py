"""`biggan checkpoint`: what a user sees of whole, damaged and unfinished checkpoints."""

from pathlib import Path

import pytest
import safetensors.torch
import torch

from jobs.cli import main
from pipeline.checkpoint import pruning
from pipeline.checkpoint.format import COMMIT, Progress


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    for images in (100, 200, 300):
        parts = {name: {"w": torch.full((4, 5), float(images))} for name in ("generator", "ema")}
        pruning.save(str(tmp_path / "saved"), Progress(images), parts, {}, keep=9)
    return tmp_path / "saved"


def test_whole_cut_flipped_and_unfinished_ones_are_told_apart(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (saved / "0000000300" / COMMIT).unlink()
    assert main(["checkpoint", "list", str(saved)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("0000000300") and "not committed" in lines[0]
    assert [line[:10] for line in lines] == ["0000000300", "0000000200", "0000000100"] and lines[1].endswith("  whole")
    file = saved / "0000000200" / "ema.rank00000.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\1")
    assert main(["checkpoint", "list", str(saved)]) == 0  # its size is right
    capsys.readouterr()
    assert main(["checkpoint", "verify", str(saved)]) == 65
    out, err = capsys.readouterr()
    assert out.splitlines()[1].endswith("ema.rank00000.safetensors is damaged")
    assert out.splitlines()[2].endswith("every byte is right")
    assert "1 of 3 checkpoints are damaged" in err
    file.write_bytes(b"")
    assert main(["checkpoint", "list", str(saved / "0000000200")]) == 65
    assert "ema.rank00000.safetensors is cut" in capsys.readouterr().out


def test_an_export_has_whole_tensors(saved: Path, tmp_path: Path) -> None:
    assert main(["checkpoint", "export", str(saved), str(tmp_path / "plain")]) == 0
    assert main(["checkpoint", "export", str(saved), str(tmp_path / "older"), "--checkpoint", "100"]) == 0
    for folder, images in (("plain", 300), ("older", 100)):
        found = safetensors.torch.load_file(tmp_path / folder / "ema.safetensors")
        assert torch.equal(found["w"], torch.full((4, 5), float(images)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["export", "SAVED"], "export: name the folder to write to"),
        (["list", "SAVED", "dst"], "list: leave out dst"),
        (["export", "SAVED", "SAVED"], "is not empty (it holds 0000000100): name a new folder"),
        (["list", "nowhere"], "nowhere has no checkpoints"),
        (["verify", "SAVED", "--checkpoint", "100"], "--checkpoint 100: goes only with export"),
    ],
)
def test_mistakes(saved: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    assert main(["checkpoint", *(str(saved) if part == "SAVED" else part for part in arguments)]) == 78
    assert message in capsys.readouterr().err
