"""Sources that are not imported: each is one line that names the file and what is wrong, and nothing in it is run."""

import json
import os
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from model.networks import build_discriminator
from pipeline.checkpoint.importers.files import CodeError
from pipeline.errors import ConfigError, DataError
from tests.support.foreign_cases import CASES, TINY, moments, read, refused, save, states

STUDIO_G, STUDIO_D = (f"model={which}-best-weights-step=5000.pth" for which in "GD")


class Trap:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before torch 1.6"])
@pytest.mark.parametrize("name", [TINY, "studiogan-32", "huggingface-128"])
def test_code_in_a_file_of_weights_is_not_run(name: str, zipped: bool, tmp_path: Path) -> None:
    save(tmp_path, name, states(name))
    file = {"biggan-pytorch": "G.pth", "studiogan": STUDIO_G, "huggingface": "pytorch_model.bin"}[CASES[name]["form"]]
    sprung = tmp_path / "sprung"
    torch.save({"weight": Trap(sprung)}, tmp_path / file, _use_new_zipfile_serialization=zipped)
    with refused(CodeError, file, "mkdir", "state_dict()"):
        read(tmp_path)
    assert not sprung.exists()
    torch.save(nn.Linear(2, 2), tmp_path / file, _use_new_zipfile_serialization=zipped)
    with refused(CodeError, file, "state_dict()"):
        read(tmp_path)


def test_code_beside_the_weights_is_not_run_either(tmp_path: Path) -> None:
    save(tmp_path, TINY, states(TINY))
    torch.save({"itr": 7, "config": Trap(tmp_path / "sprung")}, tmp_path / "state_dict.pth")
    imported = read(tmp_path)
    assert not (tmp_path / "sprung").exists() and imported.progress.g_steps == 0
    assert [note for note in imported.notes if "state_dict.pth" in note and "mkdir" in note]


def test_a_folder_of_something_else_is_told_what_was_looked_for(tmp_path: Path) -> None:
    (tmp_path / "network.pkl").touch()
    with refused(ConfigError, "G.pth", "model=G-best-weights-step=N.pth", "config.json", "it has network.pkl"):
        read(tmp_path)
    for nothing in (tmp_path / "nothing", tmp_path / "network.pkl"):
        with refused(ConfigError, str(nothing), "folder"):
            read(nothing)


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        (["mapping.w_avg", "synthesis.b4.const"], "begins with mapping.w_avg"),  # StyleGAN2
        (["linear0.weight_orig", "blocks.0.0.deconv0.weight_orig", "conv4.weight_orig"], "has no conv2d5.weight_orig"),  # DCGAN
    ],
)
def test_another_architecture_is_named_by_its_keys(keys: list[str], named: str, tmp_path: Path) -> None:
    torch.save({"state_dict": {key: torch.zeros(4, 4) for key in keys}}, tmp_path / STUDIO_G)
    with refused(ConfigError, STUDIO_G, "is no BigGAN generator", named):
        read(tmp_path)


@pytest.mark.long
def test_a_variant_is_named_by_the_first_key_that_does_not_fit(tmp_path: Path) -> None:
    name = "studiogan-deep-32"  # StudioGAN's own BigGAN-deep has a convolution on G's shortcut
    found = states(name)
    found["G"]["blocks.0.0.conv2d0.bias"] = torch.zeros(4)
    with refused(ConfigError, STUDIO_G, "blocks.0.0.conv2d0.bias is no part of the generators", "big_resnet_deep_studiogan"):
        read(save(tmp_path / "own", name, found))
    unconditional = {key: tensor for key, tensor in states(name)["G"].items() if key != "shared.weight"}
    with refused(ConfigError, STUDIO_G, "unconditional"):
        read(save(tmp_path / "unconditional", name, {"G": unconditional}))
    found = states(TINY)
    for part, axis in (("weight", 0), ("bias", 0), ("u0", 1)):  # SNGAN's narrow D
        found["D"][f"blocks.1.0.conv1.{part}"] = found["D"][f"blocks.1.0.conv1.{part}"].narrow(axis, 0, 16)
    with refused(ConfigError, "D.pth: blocks.1.0.conv1.weight is [16, 32, 3, 3]", "[32, 32, 3, 3]", "--generator-only"):
        read(save(tmp_path / "sngan", TINY, found))
    found["D"]["blocks.1.0.conv1.u0"] = torch.zeros(1, 32)
    with refused(DataError, "D.pth: blocks.1.0.conv1.u0 is [1, 32]"):
        read(save(tmp_path / "sngan", TINY, found))
    found = states("studiogan-32")
    found["D"]["linear2.weight_orig"] = torch.zeros(4, 4)  # a contrastive D
    with refused(ConfigError, STUDIO_D, "linear2.weight_orig", "--generator-only"):
        read(save(tmp_path / "contra", "studiogan-32", found))
    assert read(tmp_path / "contra", generator_only=True).discriminator is None


def test_settings_that_no_tensor_shows_are_checked(tmp_path: Path) -> None:
    save(tmp_path, TINY, states(TINY))
    torch.save({"itr": 7, "config": {"G_nl": "selu"}}, tmp_path / "state_dict.pth")
    with refused(ConfigError, "state_dict.pth: G_nl=selu", "relu"):
        read(tmp_path)
    torch.save({"itr": 7}, tmp_path / "state_dict.pth")
    with refused(DataError, "state_dict.pth holds no counters and 'config'"):
        read(tmp_path)
    folder = Path(save(tmp_path / "hf", "huggingface-128", states("huggingface-128")))
    layers = CASES["huggingface-128"]["settings"]["layers"]
    wrong_ones = ({"model_type": "bert"}, "is not that of a BigGAN: layers"), ({"layers": layers[1:], "eps": 1e-4}, "upsample")
    for wrong, named in wrong_ones:
        (folder / "config.json").write_text(json.dumps(wrong))
        with refused(ConfigError, "config.json", named):
            read(folder)
    (folder / "config.json").write_text("{")
    with refused(DataError, "config.json", "JSON"):
        read(folder)


def test_numbers_of_classes_must_agree(tmp_path: Path) -> None:
    found = states(TINY)
    with refused(ConfigError, "--num-classes 10", "G.pth has 5 classes"):
        read(save(tmp_path / "g", TINY, found), num_classes=10)
    assert read(tmp_path / "g", num_classes=5).config.num_classes == 5
    for part in ("weight", "u0"):
        found["D"][f"embed.{part}"] = torch.zeros(7, 32) if part == "weight" else torch.ones(1, 7)
    with refused(ConfigError, "D.pth has 7 classes, its generator 5", "--generator-only"):
        read(save(tmp_path / "d", TINY, found))


def test_a_saving_that_is_not_there_is_answered_with_those_that_are(tmp_path: Path) -> None:
    for name in ("G_best0.pth", "G_ema_best0.pth", "G_copy1.pth", "G_optim_copy1.pth"):
        (tmp_path / name).touch()
    for wanted in (None, "best1"):
        with refused(ConfigError, "--name-suffix", "there is --name-suffix best0, --name-suffix copy1"):
            read(tmp_path, name_suffix=wanted)
    save(tmp_path / "studio", "studiogan-32", states("studiogan-32"))
    with refused(ConfigError, "--name-suffix current: there is --name-suffix best"):
        read(tmp_path / "studio", name_suffix="current")
    later = tmp_path / "studio" / STUDIO_D.replace("5000", "6000")  # a save that was interrupted
    (tmp_path / "studio" / STUDIO_D).rename(later)
    with refused(ConfigError, "of steps 5000 and 6000"):
        read(tmp_path / "studio")
    (tmp_path / "studio" / STUDIO_G).unlink()
    with refused(ConfigError, later.name, "no G beside it"):
        read(tmp_path / "studio")


def test_damaged_files_are_named(tmp_path: Path) -> None:
    for name, file in ((TINY, "G.pth"), ("studiogan-32", STUDIO_D), ("huggingface-128", "pytorch_model.bin")):
        path = Path(save(tmp_path / name, name, states(name)), file)
        whole = path.read_bytes()
        for end in (0, 100, len(whole) // 2, len(whole) - 10):
            path.write_bytes(whole[:end])
            with refused(DataError, file, "copy it again"):
                read(path.parent)
    path.rename(path.with_name("model.safetensors"))
    with refused(DataError, "model.safetensors", "copy it again"):
        read(path.parent)
    old = tmp_path / TINY / "G.pth"
    torch.save(states(TINY)["G"], old, _use_new_zipfile_serialization=False)
    whole = old.read_bytes()
    for end in (1, 100, 5000, len(whole) // 2, len(whole) - 10):
        old.write_bytes(whole[:end])
        with refused(DataError, "G.pth", "copy it again"):
            read(old.parent)


def test_flipped_bits_are_found_by_the_checksums_of_the_members(tmp_path: Path) -> None:
    for name, file in (
        (TINY, "G.pth"),
        (TINY, "D_optim.pth"),
        ("studiogan-32", STUDIO_D),
        ("huggingface-128", "pytorch_model.bin"),
    ):
        path = Path(save(tmp_path / file, name, states(name) | (moments(name) if name == TINY else {})), file)
        with zipfile.ZipFile(path) as members:
            largest = max(members.infolist(), key=lambda member: member.file_size)
        whole = bytearray(path.read_bytes())
        whole[largest.header_offset + 200] ^= 16  # an exponent: the file loads, to other weights
        path.write_bytes(whole)
        with refused(DataError, file, f"the checksum of {largest.filename} is wrong", "copy it again"):
            read(path.parent)


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(number: float, tmp_path: Path) -> None:
    found = states(TINY)
    for key in ("linear.weight", "linear.bias", "blocks.1.0.conv1.weight"):
        found["D"][key].view(-1)[-1] = number
    with refused(
        DataError,
        "D.pth has NaN or infinite values in blocks.1.0.conv1.weight and 2 more tensors",
        "before the training diverged",
    ):
        read(save(tmp_path, TINY, found))
    assert read(tmp_path, generator_only=True).discriminator is None
    found = moments(TINY)
    found["G_optim"]["state"][0]["exp_avg"] = found["G_optim"]["state"][0]["exp_avg"] * number
    with refused(DataError, "G_optim.pth has NaN or infinite values in exp_avg/"):
        read(save(tmp_path, TINY, states(TINY) | found))


def test_files_of_another_form_are_told_what_they_are(tmp_path: Path) -> None:
    weights = states(TINY)["G"]
    folder = Path(save(tmp_path, TINY, states(TINY)))
    for key, other, named in (
        ("linear.weight", weights["linear.weight"].long(), "linear.weight is a tensor of int64"),
        ("linear.weight", weights["linear.weight"].to_sparse(), "linear.weight is a sparse tensor"),
        ("blocks.0.0.conv1.weight", weights["blocks.0.0.conv1.weight"] > 0, "conv1.weight is a tensor of bool"),
    ):
        torch.save(weights | {key: other}, folder / "G.pth")
        with refused(ConfigError, "G.pth", named, "save plain floating-point weights"):
            read(folder)
    for plain in (weights, {key: tensor.tolist() for key, tensor in weights.items()}):
        for protocol in (2, 4):
            (folder / "G.pth").write_bytes(pickle.dumps(plain, protocol))
            with refused(ConfigError, "G.pth is a plain pickle", "torch.save(network.state_dict(), FILE)"):
                read(folder)
    (folder / "G.pth").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n")
    with refused(ConfigError, "G.pth is a pointer of Git LFS", "`git lfs pull`"):
        read(folder)
    torch.save(weights, folder / "G.pth", _use_new_zipfile_serialization=False)
    assert read(folder).config.num_classes == 5


@pytest.mark.long
def test_what_is_missing_is_named(tmp_path: Path) -> None:
    found = states("biggan-deep-32")
    del found["D"]["blocks.1.1.conv3.u0"]
    with refused(DataError, "D.pth lacks blocks.1.1.conv3.u0", "incomplete"):
        read(save(tmp_path / "a", "biggan-deep-32", found))
    found = states("studiogan-64")
    del found["G"]["blocks.4.0.bn2.bn.running_var"]  # attention is 3: our block 3
    with refused(DataError, STUDIO_G, "lacks blocks.4.0.bn2.bn.running_var"):
        read(save(tmp_path / "b", "studiogan-64", found))
    torch.save([1, 2], tmp_path / "a" / "G.pth")
    with refused(ConfigError, "G.pth holds no state_dict()"):
        read(tmp_path / "a")
    torch.save({"weights": {}}, tmp_path / "b" / STUDIO_G)
    with refused(ConfigError, STUDIO_G, "'state_dict'"):
        read(tmp_path / "b")


def test_an_optimiser_of_another_network_is_named(tmp_path: Path) -> None:
    other = moments("biggan-32")
    with refused(DataError, "G_optim.pth is not the optimiser of", "linear.weight"):
        read(save(tmp_path, TINY, states(TINY) | {"G_optim": other["G_optim"]}))
    torch.save([1], tmp_path / "G_optim.pth")
    with refused(DataError, "G_optim.pth holds no state_dict() of an optimiser"):
        read(tmp_path)
    sgd = torch.optim.SGD([torch.zeros(3)], 0.1).state_dict()
    assert read(save(tmp_path, TINY, states(TINY) | {"G_optim": sgd})).optimizers == {"generator": {}}


def test_the_network_at_fault_is_named_with_the_way_out(tmp_path: Path) -> None:
    """D's attention behind a block that keeps its size (BigGAN-PyTorch at 32 px, D_attn 16); G with weights for one class."""
    found = states("studiogan-32")
    attention = {key: tensor for key, tensor in found["D"].items() if re.match(r"blocks\.1\.\d+\.(conv1x1_|sigma)", key)}
    assert attention
    last = {re.sub(r"^blocks\.1\.", "blocks.4.", key): tensor for key, tensor in attention.items()}
    others = {key: tensor for key, tensor in found["D"].items() if key not in attention}
    inner = {re.sub(r"^blocks\.([234])\.", lambda m: f"blocks.{int(m[1]) - 1}.", key): t for key, t in others.items()}
    with refused(ConfigError, f"{STUDIO_D} does not fit the networks here: d_attention=2", "pass --generator-only"):
        read(save(tmp_path / "attention", "studiogan-32", found | {"D": inner | last}))
    assert read(tmp_path / "attention", generator_only=True).config.g_attention == (16,)
    found = states("biggan-32", "G")
    found["G"]["shared.weight"] = found["G"]["shared.weight"][:1]
    with refused(ConfigError, "G.pth has one class, and weights for it (shared.weight)", "cannot be imported"):
        read(save(tmp_path / "one", "biggan-32", found))


def test_a_32_px_discriminator_of_odd_width_is_read(tmp_path: Path) -> None:
    """StudioGAN's with d_conv_dim 9: 18 channels in every stage, of which attention takes an eighth and a half."""
    found, sizes = states("studiogan-32"), {16: 18, 8: 9, 144: 162}
    found["D"] = {key: torch.rand([sizes.get(n, n) for n in tensor.shape]) for key, tensor in found["D"].items()}
    imported = read(save(tmp_path, "studiogan-32", found))
    config = imported.config
    assert config.d_channels == [18] * 4 and config.d_sizes == [16, 8] and config.d_attention_at == (16,)
    d = build_discriminator(config)
    assert imported.discriminator
    d.load_state_dict(imported.discriminator)
    assert d(torch.rand(2, 3, 32, 32), torch.tensor([0, 4])).isfinite().all()
