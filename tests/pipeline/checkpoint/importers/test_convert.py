"""Imports give the originals' own outputs. tests/pipeline/checkpoint/importers/test_refusals.py has what is refused."""

import math
import uuid
from pathlib import Path
from typing import Any

import fsspec
import pytest
import safetensors.torch
import torch

from model.config import ModelConfig
from pipeline.checkpoint.importers.convert import Imported, is_parameter
from tests.support.foreign_cases import CASES, moments, outputs, outputs_of, read, save, states

_DEEP = {"generator": "biggan-deep", "discriminator": "biggan-deep"}
_HF = _DEEP | {"ch": 16, "shared_dim": 8, "bn_eps": 1e-4, "sn_eps": 1e-4, "output_bn_eps": None, "output_width": 16}
_STUDIO = {"bn_eps": 1e-4, "output_bn_eps": None, "d_relu_shortcut": True}
# Resolution, z, attention of G and of D; what else differs from a shared embedding of 12 and ch 8.
CONFIGS: dict[str, tuple[int, int, tuple[int, ...], tuple[int, ...] | None, dict[str, Any]]] = {
    "biggan-32-unshared": (32, 16, (), (), {"shared_dim": 0, "hierarchical": False}),
    "biggan-32": (32, 16, (16,), (), {"d_ch": 12}),
    "biggan-64": (64, 20, (64,), (32,), {}),
    "biggan-64-mybn": (64, 20, (32, 64), (16,), {}),
    "biggan-64-unsplit": (64, 16, (64,), (32,), {"hierarchical": False}),
    "biggan-128": (128, 24, (64,), (64,), {}),
    "biggan-256": (256, 28, (64,), (32,), {}),
    "biggan-512": (512, 32, (64,), None, {}),
    "biggan-deep-32": (32, 8, (16,), (), _DEEP),
    "biggan-deep-64": (64, 8, (32,), (32,), _DEEP),
    "biggan-deep-128": (128, 8, (64,), (64,), _DEEP),
    "biggan-deep-256": (256, 8, (64,), (64,), _DEEP),
    "studiogan-32": (32, 20, (16,), (16,), _STUDIO | {"d_ch": 4}),
    "studiogan-64": (64, 25, (32,), (32,), _STUDIO | {"g_widths": (16, 8, 4, 2, 1)}),
    "studiogan-128": (128, 24, (64,), (64,), _STUDIO),
    "studiogan-256": (256, 28, (64,), (64,), _STUDIO),
    "studiogan-512": (512, 32, (64,), (64,), _STUDIO),
    "studiogan-deep-32": (32, 8, (16,), (16,), _STUDIO | _DEEP),
    "studiogan-deep-128": (128, 8, (64,), (64,), _STUDIO | _DEEP),
    "huggingface-128": (128, 8, (64,), None, _HF),
    "huggingface-256": (256, 8, (64,), None, _HF),
    "huggingface-512": (512, 8, (64,), None, _HF),
}


@pytest.mark.long
@pytest.mark.parametrize("name", CASES)
def test_outputs_and_configuration_are_the_originals(name: str, tmp_path: Path) -> None:
    imported = read(save(tmp_path, name, states(name)))
    resolution, z_dim, g_attention, d_attention, rest = CONFIGS[name]
    shape: dict[str, Any] = {"ch": 8, "shared_dim": 12, "bn_eps": 1e-4, "output_bn_eps": 1e-5, "sn_eps": 1e-6} | rest
    attention = {"g_attention": g_attention, "d_attention": d_attention}
    assert imported.config == ModelConfig(resolution=resolution, num_classes=5, z_dim=z_dim, **attention, **shape)
    theirs = outputs(name)
    ours = outputs_of(name, imported, {key.partition(" ")[2] for key in theirs})
    assert ours.keys() == theirs.keys()
    for key, kept in theirs.items():
        # BigGAN-PyTorch's own batch norm takes its statistics in float32.
        limit = 1e-5 if "mybn" in name and key == "G train" else 1e-11
        assert float((ours[key] - kept).abs().max()) <= limit * max(1.0, float(kept.abs().max())), key


@pytest.mark.long
@pytest.mark.parametrize("name", ["biggan-32-unshared", "biggan-64", "biggan-deep-64", "studiogan-64", "studiogan-deep-32"])
def test_moments_of_adam_go_with_their_parameters(name: str, tmp_path: Path) -> None:
    imported = read(save(tmp_path, name, states(name) | moments(name)))
    for role, tensors in (("generator", imported.generator), ("discriminator", imported.discriminator)):
        assert tensors
        saved = imported.optimizers[role]
        names = [key for key in tensors if is_parameter(key)]
        assert saved.keys() == {"step", *(f"{kind}/{key}" for kind in ("exp_avg", "exp_avg_sq") for key in names)}
        assert saved["step"] == 7
        for key in names:
            assert torch.equal(saved[f"exp_avg/{key}"], tensors[key])
            assert torch.equal(saved[f"exp_avg_sq/{key}"], 2 * tensors[key])


@pytest.mark.long
def test_a_checkpoint_of_2019_is_read(tmp_path: Path) -> None:
    """Before torch 1.6: no zip, modules saved with their code, and Adam's state numbered by id()."""
    name, old = "biggan-64", {"_use_new_zipfile_serialization": False}
    new = read(save(tmp_path / "new", name, states(name) | moments(name)))
    (tmp_path / "old").mkdir()
    for file, state in (states(name) | moments(name)).items():
        if file.endswith("_optim"):
            places = {i: 140_000_000_000_000 + 7919 * (i * 37 % 1000) for i in state["state"]}
            state["state"] = {places[i]: s | {"step": 7} for i, s in state["state"].items()}
            state["param_groups"][0]["params"] = list(places.values())
        torch.save(state, tmp_path / "old" / f"{file}.pth", **old)
    torch.save({"itr": 100, "config": {"G_activation": torch.nn.ReLU()}}, tmp_path / "old/state_dict.pth", **old)
    imported = read(str(tmp_path / "old"), bn_eps=1e-4)
    for part in ("generator", "discriminator", "statistics"):
        ours, theirs = getattr(imported, part), getattr(new, part)
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert all(torch.equal(imported.optimizers["generator"][k], t) for k, t in new.optimizers["generator"].items())
    assert imported.config == new.config
    assert (imported.progress.g_steps, new.progress.g_steps, new.progress.images) == (0, 100, 100 * 4 * 2 * 3)
    assert [note for note in imported.notes if "state_dict.pth is refused" in note and "starts at 0" in note]


@pytest.mark.long
def test_the_averaged_generator_has_its_own_weights_vectors_and_statistics(tmp_path: Path) -> None:
    for name, plain, averaged in (("biggan-64", "G.pth", "G_ema.pth"), ("studiogan-64", "model=G-best", "model=G_ema-best")):
        both = read(save(tmp_path / name, name, states(name, "G", "G_ema", "D")))
        assert not torch.equal(both.ema["seed.weight"], both.generator["seed.weight"])
        assert torch.equal(both.statistics["blocks.1.bn2.norm.var"][0], both.ema["blocks.1.bn2.norm.var"])
        assert both.statistics["truncations"].tolist() == [math.inf]
        for kept, there in ((plain, both.generator), (averaged, both.ema)):
            (path,) = (tmp_path / name).glob(f"{averaged if kept == plain else plain}*")
            data = path.read_bytes()
            path.unlink()
            alone = read(str(tmp_path / name))
            assert alone.ema is alone.generator and all(torch.equal(alone.generator[key], there[key]) for key in there)
            path.write_bytes(data)


@pytest.mark.long
def test_statistics_are_found_under_all_three_batch_norms(tmp_path: Path) -> None:
    name = "biggan-64"
    state = states(name, "G")["G"]
    plain = read(save(tmp_path / "plain", name, {"G": state})).statistics

    def renamed(folder: str, mean: str, var: str, scale: float, count: float) -> Imported:
        kinds, tensors = {"stored_mean": mean, "stored_var": var}, {}
        for key, tensor in state.items():
            layer, _, kind = key.rpartition(".")
            tensors[f"{layer}.{kinds.get(kind, kind)}"] = tensor * scale if kind in kinds else tensor
            if kind == "stored_mean":
                tensors[f"{layer}.bn.accumulation_counter"] = torch.tensor([count])
        return read(save(tmp_path / folder, name, {"G": tensors}))

    sync = renamed("sync", "bn.running_mean", "bn.running_var", 1, 0)
    mine = renamed("mybn", "bn.stored_mean", "bn.stored_var", 1, 0)
    summed = renamed("summed", "bn.stored_mean", "bn.stored_var", 16, 16)
    for other in (sync, mine, summed):
        assert all(torch.equal(other.statistics[key], plain[key]) for key in plain) and not other.notes
    # An average of G's buffers went on over the sums of a standing pass.
    mixed = renamed("mixed", "bn.stored_mean", "bn.stored_var", 15.3, 15.2)
    assert not mixed.statistics and mixed.generator["blocks.0.bn1.norm.mean"].isnan().all()
    assert [note for note in mixed.notes if "G.pth" in note and "left out" in note]


@pytest.mark.long
def test_one_of_several_savings_is_chosen(tmp_path: Path) -> None:
    (first,) = states("biggan-64", "G").values()
    (second,) = states("biggan-64", "G_ema").values()
    torch.save(first, tmp_path / "G_best0.pth")
    torch.save(second, tmp_path / "G_copy1.pth")
    assert torch.equal(read(str(tmp_path), name_suffix="best0").generator["output.bias"], first["output_layer.2.bias"])
    assert torch.equal(read(str(tmp_path), name_suffix="copy1").generator["output.bias"], second["output_layer.2.bias"])
    studio = tmp_path / "studio"
    save(studio, "studiogan-32", states("studiogan-32"))
    for file in list(studio.iterdir()):
        file.with_name(file.name.replace("best", "current").replace("5000", "6000")).write_bytes(file.read_bytes())
    steps = [read(str(studio), name_suffix=when).progress.g_steps for when in (None, "best", "current")]
    assert steps == [5000, 5000, 6000]


@pytest.mark.long
def test_every_truncation_keeps_its_statistics(tmp_path: Path) -> None:
    name = "huggingface-128"
    state = states(name)["G"]
    imported = read(save(tmp_path, name, {"G": state}))
    truncations = imported.statistics["truncations"]
    assert len(truncations) == 51 and torch.allclose(truncations, torch.arange(51) * 0.02)
    assert torch.equal(imported.statistics["blocks.3.bn4.norm.var"], state["generator.layers.3.bn_3.running_vars"])
    # Attention is layer 8 there.
    assert torch.equal(imported.statistics["blocks.8.bn1.norm.mean"], state["generator.layers.9.bn_0.running_means"])
    assert torch.equal(imported.generator["output_bn.norm.mean"], state["generator.bn.running_means"][50])
    (tmp_path / "pytorch_model.bin").unlink()
    safetensors.torch.save_file(state, tmp_path / "model.safetensors")
    again = read(str(tmp_path))
    assert all(torch.equal(again.generator[key], tensor) for key, tensor in imported.generator.items())


def test_a_source_may_be_in_a_store_and_in_half_precision(tmp_path: Path) -> None:
    name = "biggan-32-unshared"
    halves = {key: tensor.half() for key, tensor in states(name, "G")["G"].items()}
    local, uri = save(tmp_path, name, {"G": halves}), f"memory://{uuid.uuid4().hex}/weights"
    memory = fsspec.filesystem("memory")
    for path in Path(local).iterdir():
        memory.pipe_file(f"{uri}/{path.name}", path.read_bytes())
    imported = read(uri)
    assert imported.source["path"] == uri and imported.generator["output.bias"].dtype is torch.float32
    assert torch.equal(imported.generator["output.bias"], halves["output_layer.2.bias"].float())
