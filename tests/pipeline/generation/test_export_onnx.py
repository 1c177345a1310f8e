"""The ONNX file against the network: every form of generator, any batch, and what a reader without torch finds inside."""

import base64
import importlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from jobs.cli import main
from model.config import ModelConfig
from model.networks import build_generator
from pipeline import progress
from pipeline.errors import ConfigError
from pipeline.generation import export_onnx
from pipeline.generation.export_onnx import TOLERANCE, save_onnx
from pipeline.generation.load import TrainedGenerator, load_generator, stand
from tests.support.saved_run import save_run, short_standing_statistics

ort = pytest.importorskip("onnxruntime")
onnx = pytest.importorskip("onnx")

pytestmark = pytest.mark.slow

SMALL: dict[str, dict[str, Any]] = {
    "biggan": {"ch": 8, "shared_dim": 8, "g_attention": (16,)},
    "biggan, no shared embedding, no split, no spectral norm": {
        "ch": 2, "shared_dim": 0, "hierarchical": False, "g_spectral": False,
    },
    "biggan, unconditional, grey": {"ch": 2, "num_classes": 1, "channels": 1},
    "biggan-deep": {"generator": "biggan-deep", "ch": 8, "shared_dim": 8, "output_width": 8},
    "transposed": {"generator": "transposed", "ch": 8, "g_attention": (8,), "attention": "scaled"},
}  # fmt: skip


def random_generator(config: ModelConfig, standing: int = 32) -> TrainedGenerator:
    """Random weights, gammas of attention and gains included, so that every part shows in the image."""
    torch.manual_seed(0)
    generator = build_generator(config)
    with torch.no_grad():
        for parameter in generator.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.3 * torch.randn(parameter.shape))
    stand(generator, samples=standing)
    classes = tuple(f"class {i}" for i in range(config.num_classes))
    return TrainedGenerator(
        generator=generator, config=config, images=4096, classes=classes, weights_sha256="0" * 64, recorded=None
    )


def difference(trained: TrainedGenerator, session: Any, z: torch.Tensor, y: torch.Tensor) -> float:
    with torch.no_grad():
        ours = trained.generator(z, y).numpy()
    (theirs,) = session.run(["images"], {"z": z.numpy(), "class_id": y.numpy()})
    assert theirs.shape == ours.shape and theirs.dtype == np.float32
    assert np.abs(ours).max() > 0.1 and (len(ours) < 2 or np.abs(ours[0] - ours[1]).max() > 1e-3)
    return float(np.abs(ours - theirs).max())


@pytest.fixture(scope="module", params=SMALL, ids=str)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainedGenerator, Path]:
    shape = {"resolution": 32, "num_classes": 5} | SMALL[request.param]
    trained = random_generator(ModelConfig(**shape))
    path = tmp_path_factory.mktemp("onnx") / "generator.onnx"
    save_onnx(trained, path)
    return trained, path


def test_it_draws_what_the_network_draws_for_any_batch(exported: tuple[TrainedGenerator, Path]) -> None:
    trained, path = exported
    session = ort.InferenceSession(path)
    assert [(i.name, i.type) for i in session.get_inputs()] == [("z", "tensor(float)"), ("class_id", "tensor(int64)")]

    @settings(max_examples=6)
    @given(n=st.integers(1, 9), seed=st.integers(0, 2**31), scale=st.sampled_from([0.1, 0.5, 1.0]))
    def check(n: int, seed: int, scale: float) -> None:
        rng = torch.Generator().manual_seed(seed)
        z = scale * torch.randn(n, trained.config.latent_dim, generator=rng)
        y = torch.randint(trained.config.num_classes, (n,), generator=rng)
        assert difference(trained, session, z, y) <= TOLERANCE

    check()
    # The export took a copy.
    assert any(name.endswith(".u") for name, _ in trained.generator.named_buffers()) == trained.config.g_spectral


def test_a_reader_without_torch_finds_all_it_needs(exported: tuple[TrainedGenerator, Path]) -> None:
    trained, path = exported
    session = ort.InferenceSession(path)
    about = session.get_modelmeta().custom_metadata_map
    assert json.loads(about["classes"]) == list(trained.classes) and about["weights_sha256"] == trained.weights_sha256
    dim = json.loads(about["latent_dim"])
    assert dim == trained.config.latent_dim and "|z| <= t" in about["truncation"]
    assert onnx.load(path).opset_import[0].version == json.loads(about["opset"]) == export_onnx.OPSET
    assert onnx.load(path).ir_version == 8  # with opset 18, what onnxruntime 1.14 reads
    z = np.frombuffer(base64.b64decode(about["golden_z"]), "<f4").reshape(-1, dim)
    ids = np.array(json.loads(about["golden_class_id"]))
    (images,) = session.run(None, {"z": z, "class_id": ids})
    pixels = np.concatenate(list(((images + 1) * 127.5).round()), axis=2).squeeze()
    golden = np.asarray(Image.open(io.BytesIO(base64.b64decode(about["golden_png"])))).astype(int)
    assert np.abs(pixels - (golden if golden.ndim == 2 else golden.transpose(2, 0, 1))).max() <= 1
    for wrong in (trained.config.num_classes, -1, -trained.config.num_classes, 1 << 40):
        with pytest.raises(Exception, match="out of"):
            session.run(None, {"z": z[:2], "class_id": np.array([0, wrong])})


def test_a_graph_that_draws_otherwise_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = random_generator(ModelConfig(resolution=32, num_classes=2, ch=2))
    shifted = importlib.import_module("copy").deepcopy(trained.generator)
    shifted.output.bias.data.add_(1)
    graph = export_onnx._graph
    monkeypatch.setattr(export_onnx, "_graph", lambda _, samples: graph(shifted, samples))
    with pytest.raises(RuntimeError, match="draws other images"):
        save_onnx(trained, tmp_path / "x.onnx")
    assert not (tmp_path / "x.onnx").exists()


def test_without_the_extra_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(importlib.import_module("sys").modules, "onnxscript", None)
    trained = random_generator(ModelConfig(resolution=32, num_classes=2, ch=2))
    with pytest.raises(ConfigError, match=r"onnxscript: pip install 'biggan-pipeline\[onnx\]'"):
        save_onnx(trained, tmp_path / "x.onnx")


def test_the_command_writes_the_file(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    short_standing_statistics(monkeypatch)
    monkeypatch.setattr(progress, "LINE_SECONDS", 0)
    save_run(tmp_path / "run", shards, mode="off")
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "g.onnx")]) == 0
    statistics, *steps, last = capsys.readouterr().out.splitlines()
    assert statistics.startswith("taking batch-norm statistics: 32 of 32 samples, ")
    assert [line.partition(",")[0] for line in steps] == [f"writing the ONNX graph: {n} of 3 steps" for n in (1, 2, 3)]
    assert "onnx, 4,096 images" in last
    trained = load_generator(tmp_path / "run")
    session = ort.InferenceSession(tmp_path / "g.onnx")
    assert session.get_modelmeta().custom_metadata_map["weights_sha256"] == trained.weights_sha256
    z, y = torch.ones(2, trained.config.latent_dim), torch.tensor([1, 3])
    assert difference(trained, session, z, y) <= TOLERANCE


@pytest.mark.timeout(900)
def test_biggan_128_as_published(tmp_path: Path) -> None:
    trained = random_generator(ModelConfig(resolution=128, num_classes=1000, ch=96), standing=4)
    save_onnx(trained, tmp_path / "128.onnx")
    session = ort.InferenceSession(tmp_path / "128.onnx")
    assert difference(trained, session, torch.randn(3, 120), torch.tensor([0, 999, 207])) <= TOLERANCE
