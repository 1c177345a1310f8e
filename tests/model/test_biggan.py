"""BigGAN and BigGAN-deep: published sizes, and what conditions what."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model import spectral
from model.biggan import Discriminator, Generator
from model.config import ModelConfig

SMALL: dict[str, Any] = {"resolution": 32, "num_classes": 5, "channels": 1, "ch": 8, "shared_dim": 6, "z_dim": 16}
DEEP: dict[str, Any] = {"generator": "biggan-deep", "discriminator": "biggan-deep", "ch": 128}
HUB: dict[str, Any] = DEEP | {"output_width": 128}


def size(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


@pytest.fixture
def uninitialised(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counting needs no numbers, and those of a large network take minutes."""
    monkeypatch.setattr(nn.init, "orthogonal_", lambda weight: weight)
    monkeypatch.setattr(spectral, "_iterate", lambda layers, times: None)


@pytest.mark.parametrize(
    ("config", "g", "d"),
    [
        # compare_gan's unit tests assert the first; BigGAN-PyTorch's networks have all but those of TF-Hub.
        (ModelConfig(128, 1000), 70_433_988, 87_982_370),
        (ModelConfig(128, 1000, ch=64), 31_978_628, 39_448_258),
        (ModelConfig(64, 1000), 70_239_108, 45_500_449),
        (ModelConfig(64, 1000, ch=64), 31_908_100, 20_566_721),
        (ModelConfig(32, 10, ch=64, shared_dim=0, hierarchical=False), 4_304_387, 4_207_361),
        # compare_gan's D has no convolution on the shortcut of the one block that halves and keeps its 768 channels.
        (ModelConfig(256, 1000), None, 98_635_298 + 768 * 768 + 768),
        (ModelConfig(128, 1000, **DEEP), 50_244_484, 34_590_210),
        (ModelConfig(128, 1000, **HUB), 50_388_609, None),
        (ModelConfig(256, 1000, **HUB), 55_880_833, None),
        (ModelConfig(512, 1000, **HUB), 56_163_905, None),
    ],
)
@pytest.mark.usefixtures("uninitialised")
def test_parameter_counts_are_the_published_ones(config: ModelConfig, g: int | None, d: int | None) -> None:
    with torch.device("meta"):
        assert g is None or size(Generator(config)) == g
        assert d is None or size(Discriminator(config)) == d


def conditions(g: Generator, z: Tensor, y: Tensor) -> tuple[Tensor, list[Tensor]]:
    """What the seed reads, and what each block reads besides the image so far."""
    seeds: list[Tensor] = []
    read: list[Tensor] = []
    g.seed.register_forward_pre_hook(lambda _, args: seeds.append(args[0].detach()))
    for block in g.blocks:
        block.register_forward_pre_hook(lambda _, args: read.append(args[1].detach()))
    g(z, y)
    return seeds[0], read


def test_the_condition_is_the_class_and_then_the_blocks_own_part_of_z() -> None:
    """The order of the columns is that of published weights."""
    z, y = torch.randn(2, 16), torch.tensor([0, 4])
    for settings in ({}, {"shared_dim": 0}, {"num_classes": 1}):
        g = Generator(ModelConfig(**SMALL | settings))
        classes = F.one_hot(y, 5).float() if settings == {"shared_dim": 0} else g.shared(y) if not settings else z[:, :0]
        seed, read = conditions(g, z, y)
        assert torch.equal(seed, z[:, :4])
        for found, chunk in zip(read, z[:, 4:].split(4, 1), strict=True):
            assert torch.equal(found, torch.cat((classes, chunk), 1))
    g = Generator(ModelConfig(**SMALL | {"hierarchical": False}))
    seed, read = conditions(g, z, y)
    assert torch.equal(seed, z) and len(read) == 3 and all(torch.equal(r, g.shared(y)) for r in read)
    g = Generator(ModelConfig(**SMALL | {"generator": "biggan-deep"}))
    seed, read = conditions(g, z, y)
    assert len(read) == 6 and all(torch.equal(r, torch.cat((g.shared(y), z), 1)) for r in (seed, *read))


def test_every_latent_chunk_and_the_class_reach_the_image() -> None:
    torch.manual_seed(0)
    for generator in ("biggan", "biggan-deep"):
        g = Generator(ModelConfig(**SMALL | {"generator": generator}))
        z, y = torch.randn(4, 16), torch.tensor([0, 1, 2, 3])
        x = g(z, y)
        assert not torch.equal(x, g(z, y.flip(0)))
        for slot in range(4):
            other = z.clone()
            other[:, slot * 4 : slot * 4 + 4] += 1
            assert not torch.equal(x, g(other, y)), f"chunk {slot} changes nothing"


def test_gains_and_biases_by_class_are_a_table() -> None:
    """Without a shared embedding they are not normalised, as in BigGAN-PyTorch; the convolutions are."""
    keys = Generator(ModelConfig(**SMALL | {"shared_dim": 0, "hierarchical": False})).state_dict()
    assert keys["blocks.0.bn1.gain.weight"].shape == (32, 5) and "shared.weight" not in keys
    assert "blocks.0.bn1.gain.u" not in keys and "blocks.0.conv1.u" in keys
    assert "blocks.0.bn1.gain.u" in Generator(ModelConfig(**SMALL)).state_dict()


def test_batch_norm_knows_its_eps() -> None:
    g = Generator(ModelConfig(**SMALL | {"bn_eps": 0.3}))
    assert (g.blocks[2].bn2.norm.eps, g.output_bn.norm.eps) == (0.3, 0.3)
    g = Generator(ModelConfig(**SMALL | {"output_bn_eps": 0.5}))
    assert (g.blocks[2].bn2.norm.eps, g.output_bn.norm.eps) == (1e-4, 0.5)


def test_the_image_is_the_first_outputs_of_a_wider_convolution() -> None:
    torch.manual_seed(0)
    settings = SMALL | {"channels": 3, "g_spectral": False}
    wide, narrow = Generator(ModelConfig(**settings, output_width=8)), Generator(ModelConfig(**settings))
    first = {key: value[:3] if key.startswith("output.") else value for key, value in wide.state_dict().items()}
    narrow.load_state_dict(first)
    z, y = torch.randn(2, 16), torch.tensor([0, 4])
    assert wide.output.weight.shape[0] == 8
    torch.testing.assert_close(wide(z, y), narrow(z, y))


@pytest.mark.parametrize(
    ("settings", "g_sizes", "d_sizes"),
    [
        ({}, [8, 16, 32], [16, 8, 8, 8]),
        ({"d_widths": (1, 2, 4, 8)}, [8, 16, 32], [16, 8, 4, 4]),
        ({"resolution": 64, "z_dim": 20}, [8, 16, 32, 64], [32, 16, 8, 4, 4]),
        (DEEP | {"ch": 8}, [4, 8, 8, 16, 16, 32], [16, 16, 8, 8, 8, 8]),
        (DEEP | {"ch": 8, "resolution": 64}, [4, 8, 8, 16, 16, 32, 32, 64], [32, 32, 16, 16, 8, 8, 4, 4]),
    ],
)
def test_which_blocks_resize(settings: dict[str, Any], g_sizes: list[int], d_sizes: list[int]) -> None:
    config = ModelConfig(**SMALL | {"max_channels": 16} | settings)
    found: list[int] = []
    g, d = Generator(config), Discriminator(config)
    for block in (*g.blocks, *d.blocks):
        block.register_forward_hook(lambda _, args, out: found.append(out.shape[-1]))
    y = torch.tensor([0])
    d(g(torch.randn(1, config.latent_dim), y), y)
    assert found == g_sizes + d_sizes


@pytest.mark.parametrize("discriminator", ["biggan", "biggan-deep"])
def test_ds_head_is_the_projection_papers(discriminator: str) -> None:
    """D(x, y) = linear(h) + <embed(y), h> with h = sum of relu(last block) over positions (arXiv 1802.05637)."""
    torch.manual_seed(0)
    d = Discriminator(ModelConfig(**SMALL | {"discriminator": discriminator}))
    last: list[Tensor] = []
    d.blocks[-1].register_forward_hook(lambda _, args, out: last.append(out))
    y = torch.tensor([4, 0, 2])
    logits = d(torch.rand(3, 1, 32, 32) * 2 - 1, y)
    h = last[0].clamp_min(0).flatten(2).sum(2)
    linear, table = d.linear.normalised_weight()[0], d.embed.normalised_weight()
    torch.testing.assert_close(logits, h @ linear + (table[y] * h).sum(1))


@pytest.mark.parametrize("discriminator", ["biggan", "biggan-deep"])
def test_concatenation_puts_one_map_for_each_class_behind_the_image(discriminator: str) -> None:
    d = Discriminator(ModelConfig(**SMALL | {"channels": 3, "discriminator": discriminator, "d_condition": "concat"}))
    read: list[Tensor] = []
    first = d.input if discriminator == "biggan-deep" else d.blocks[0]
    first.register_forward_pre_hook(lambda _, args: read.append(args[0]))
    x = torch.randn(2, 3, 32, 32)
    d(x, torch.tensor([4, 1]))
    maps = torch.zeros(2, 5, 32, 32)
    maps[0, 4] = maps[1, 1] = 1
    assert torch.equal(read[0], torch.cat((x, maps), 1))
