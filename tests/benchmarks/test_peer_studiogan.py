"""What StudioGAN's training step is given; with STUDIOGAN=DIR, a checkout, that it is a step of the same network."""

import os
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks.others.originals import importing
from benchmarks.others.peer import Setting
from benchmarks.others.studiogan import changes, studiogan
from benchmarks.support import foreign_checkpoints
from model.config import ModelConfig
from pipeline.checkpoint.importers import detect
from pipeline.checkpoint.importers.convert import Options
from pipeline.errors import ConfigError

AT_32 = Setting(
    resolution=32, ch=8, micro_batch=4, classes=5, z_dim=20, shared_dim=12, g_attention=(16,), d_attention=(16,), d_steps=2
)
AT_128 = replace(AT_32, resolution=128, z_dim=24, g_attention=(64,), d_attention=(64,))
CHECKOUT = Path(os.environ.get("STUDIOGAN", "/nowhere"))
with_a_checkout = pytest.mark.skipif(
    "STUDIOGAN" not in os.environ, reason="STUDIOGAN=DIR names a checkout of PyTorch-StudioGAN"
)


def test_sizes_are_in_its_own_terms() -> None:
    found = changes(AT_128)
    assert found["MODEL"] | {"attn_g_loc": [4], "attn_d_loc": [1], "g_conv_dim": 8, "d_conv_dim": 8} == found["MODEL"]
    assert found["DATA"] == {"img_size": 128, "num_classes": 5}
    assert found["OPTIMIZATION"] == {"batch_size": 4, "acml_steps": 1, "d_updates_per_step": 2}


def test_at_32_px_its_narrower_discriminator_gets_twice_the_multiplier() -> None:
    found = changes(AT_32)["MODEL"]
    assert (found["g_conv_dim"], found["d_conv_dim"], found["attn_g_loc"], found["attn_d_loc"]) == (8, 16, [2], [1])


def test_at_64_px_no_multiplier_makes_its_generator_ours() -> None:
    with pytest.raises(ConfigError, match=r"resolution 64: .* compare at 32, 128 or 256 px"):
        changes(replace(AT_32, resolution=64))


def test_attention_may_be_missing_from_one_network_or_both() -> None:
    only_g, none = replace(AT_32, d_attention=()), replace(AT_32, g_attention=(), d_attention=())
    assert (changes(only_g)["MODEL"]["apply_attn"], changes(only_g)["MODEL"]["attn_d_loc"]) == (True, [])
    assert not changes(none)["MODEL"]["apply_attn"]


def test_a_folder_that_is_no_checkout_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"--studiogan {tmp_path}: no src/worker.py in it; name a checkout"):
        studiogan(tmp_path, AT_32)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_mixed_precision_wants_a_gpu(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"mixed precision: .* no GPU here"):
        studiogan(tmp_path, AT_32, mixed_precision=True)


def test_modules_of_an_original_are_gone_afterwards_and_what_was_there_is_back(tmp_path: Path) -> None:
    for project, name in (("one", "here"), ("two", "there")):
        (tmp_path / project / "utils_of_a_test").mkdir(parents=True)  # no __init__.py: a module without a file
        (tmp_path / project / "utils_of_a_test" / "place.py").write_text(f"NAME = {name!r}\nimport json")
    names, json = [], sys.modules["json"]
    for project in ("one", "two"):
        with importing(tmp_path / "two" / ".." / project, json=sys):
            from utils_of_a_test import place

            names.append((place.NAME, place.json is sys))
    assert names == [("here", True), ("there", True)]
    assert "utils_of_a_test" not in sys.modules and sys.modules["json"] is json
    assert str(tmp_path / "one") not in sys.path


def images(setting: Setting) -> tuple[Tensor, Tensor]:
    count = setting.micro_batch * setting.d_steps
    return torch.rand(count, 3, setting.resolution, setting.resolution) * 2 - 1, torch.randint(setting.classes, (count,))


@with_a_checkout
def test_an_update_moves_both_networks_and_the_average_and_counts_itself() -> None:
    peer = studiogan(CHECKOUT, AT_32)
    worker = peer.worker
    parts = (worker.Gen, worker.Dis, worker.Gen_ema)
    before = [[p.detach().cpu().clone() for p in part.parameters()] for part in parts]
    losses = peer.update(*images(AT_32))
    assert losses.keys() == {"loss/d", "loss/g"} and all(abs(value) < 1e6 for value in losses.values())
    for part, saved in zip(parts, before, strict=True):
        moved = [float((p.detach().cpu() - old).abs().max()) > 0 for p, old in zip(part.parameters(), saved, strict=True)]
        assert sum(moved) > 0.9 * len(moved)  # biases in front of batch norm have no gradient
    assert peer.step == 1
    steps = {int(state["step"]) for state in worker.OPTIMIZATION.d_optimizer.state.values()}
    assert steps == {2} and {int(s["step"]) for s in worker.OPTIMIZATION.g_optimizer.state.values()} == {1}
    # Each update takes all of what it is given: D's second step has images of its own.
    with pytest.raises(ValueError, match="an update takes 8"):
        peer.update(*(part[:4] for part in images(AT_32)))


@with_a_checkout
@pytest.mark.parametrize("setting", [AT_32, AT_128, replace(AT_32, g_attention=(), d_attention=())], ids=["32", "128", "plain"])
def test_its_networks_are_ours_with_three_keys(setting: Setting, tmp_path: Path) -> None:
    peer = studiogan(CHECKOUT, setting)
    states = {
        name: getattr(peer.worker, part).state_dict() for name, part in (("G", "Gen"), ("G_ema", "Gen_ema"), ("D", "Dis"))
    }
    saved = foreign_checkpoints.save(tmp_path, "studiogan", states)
    config = detect.read(str(saved), Options(), lambda line: None).config
    sizes = {key: value for key, value in asdict(setting).items() if key not in ("micro_batch", "classes", "d_steps")}
    assert config == ModelConfig(num_classes=setting.classes, d_relu_shortcut=True, bn_eps=1e-4, sn_eps=1e-6, **sizes)
