import json
from pathlib import Path

import pytest
import torch

from jobs.cli import commands, main
from pipeline.checkpoint import format
from pipeline.checkpoint.importers import detect
from pipeline.checkpoint.importers.convert import Options, is_parameter
from pipeline.errors import ConfigError
from tests.support.foreign_cases import moments, save, states

NAME = "biggan-32"


def test_a_source_becomes_a_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    src = save(tmp_path / "src", NAME, states(NAME, "G", "G_ema", "D") | moments(NAME))
    dst = str(tmp_path / "dst")
    assert "import" in commands()
    assert main(["import", src, dst]) == 0
    said = capsys.readouterr().out
    for part in (
        f"reading {src}/G_ema.pth",
        "recognised: BigGAN-PyTorch, biggan, 32 px, ch 8, 5 classes, z 16; the averaged and the plain G",
        "Adam's moments: generator and discriminator; batch-norm statistics: 1; 2,400 images, 100 G steps",
        f"wrote {dst}/0000002400",
        f"next: biggan sample {dst} samples.png",
        f"biggan train CONFIG init={dst}",
    ):
        assert part in said

    found = format.newest(dst)
    assert found and found.progress() == format.Progress(2400, 100)
    state = found.state()
    assert state["model"]["g_attention"] == [16] and state["classes"] is None
    assert state["source"]["format"] == "BigGAN-PyTorch" and state["source"]["files"]["G"] == "G.pth"
    imported = detect.read(src, Options(), lambda line: None)
    generator, ema = found.tensors("generator"), found.tensors("ema")
    assert all(torch.equal(generator[key], tensor.float()) for key, tensor in imported.generator.items())
    assert ema.keys() == {key for key in generator if is_parameter(key)}
    assert all(torch.equal(tensor, imported.ema[key].float()) for key, tensor in ema.items())
    vectors = found.tensors("ema_vectors")
    assert vectors.keys() == {key for key in generator if key.endswith((".u", ".v"))}
    assert torch.equal(vectors["seed.u"], imported.ema["seed.u"].float())
    statistics = found.tensors("statistics")
    assert statistics["blocks.0.bn1.norm.mean"].shape == (1, 32) and statistics["truncations"].tolist() == [float("inf")]
    assert torch.equal(found.tensors("discriminator")["embed.u"], imported.discriminator["embed.u"].float())
    for role in ("generator", "discriminator"):
        saved = found.tensors(f"{role}_optimizer")
        assert saved["step"] == 7 and all(tensor.dtype is torch.float32 for tensor in saved.values())


@pytest.mark.long
def test_a_generator_alone_becomes_one_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name, dst = "huggingface-128", str(tmp_path / "dst")
    assert main(["import", save(tmp_path / "src", name, states(name)), dst]) == 0
    said = capsys.readouterr().out
    assert "one G, taken for both" in said and "no D" in said and "batch-norm statistics: 51" in said
    found = format.newest(dst)
    assert found and found.images == 0
    assert found.parts == {"generator", "ema", "statistics"}
    assert found.tensors("statistics")["output_bn.norm.var"].shape == (51, 16)


def test_nothing_is_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    src = save(tmp_path / "src", NAME, states(NAME))
    kept = tmp_path / "dst" / "0000000001"
    kept.mkdir(parents=True)
    (kept / "photo.png").touch()
    assert main(["import", src, str(tmp_path / "dst")]) == 78
    assert "dst is not empty (it holds 0000000001)" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="0000000001"):
        detect.save(detect.read(src, Options(), print), str(tmp_path / "dst"))
    assert (kept / "photo.png").exists()


def test_a_refusal_is_one_line_and_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    src = Path(save(tmp_path / "src", NAME, states(NAME)))
    dst = tmp_path / "dst"
    for argv, part in (
        (["--num-classes", "10"], "--num-classes 10"),
        (["--num-classes", "0"], "--num-classes 0: must be above 0"),
        (["--bn-eps", "-1"], "--bn-eps -1.0: must be above 0"),
        (["--name-suffix", "best0"], "--name-suffix best0"),
    ):
        assert main(["import", str(src), str(dst), *argv]) == 78
        (line,) = capsys.readouterr().err.splitlines()
        assert part in line
    (src / "D.pth").write_bytes((src / "D.pth").read_bytes()[:1000])
    assert main(["import", str(src), str(dst)]) == 65
    (line,) = capsys.readouterr().err.splitlines()
    assert "D.pth is damaged" in line and not dst.exists()
    assert main(["import", str(src), str(dst), "--generator-only", "--bn-eps", "1e-3"]) == 0
    state = json.loads(next(dst.glob("*/state.json")).read_text())
    assert state["model"]["bn_eps"] == 1e-3 and "D" not in state["source"]["files"]
