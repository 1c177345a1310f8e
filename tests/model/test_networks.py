"""What holds for every generator and discriminator: shapes, precisions, classes, attention's place."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from model.config import ModelConfig
from model.networks import Discriminator, Generator, build_discriminator, build_generator

GENERATORS = ("biggan", "biggan-deep", "transposed")
DISCRIMINATORS = ("biggan", "biggan-deep", "strided")
SMALL: dict[str, Any] = {"resolution": 32, "num_classes": 5, "channels": 1, "ch": 8, "shared_dim": 6, "z_dim": 8}
# What a network is named by, the field and the name.
NETWORKS = [("generator", name) for name in GENERATORS] + [("discriminator", name) for name in DISCRIMINATORS]


def build(**settings: Any) -> tuple[Generator, Discriminator]:
    torch.manual_seed(0)
    config = ModelConfig(**SMALL | settings)
    return build_generator(config), build_discriminator(config)


def check(g: Generator, d: Discriminator) -> None:
    config = g.config
    y = torch.tensor([0, config.num_classes - 1])
    x = g(torch.randn(2, config.latent_dim), y)
    assert x.shape == (2, config.channels, config.resolution, config.resolution) and x.abs().max() <= 1
    logits = d(x, y)
    assert logits.shape == (2,) and x.dtype == logits.dtype == torch.float32
    logits.sum().backward()
    unused = [name for network in (g, d) for name, p in network.named_parameters() if p.grad is None]
    assert not unused


@pytest.mark.parametrize("classes", [5, 1])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("resolution", [32, 64])
@pytest.mark.parametrize("discriminator", DISCRIMINATORS)
@pytest.mark.parametrize("generator", GENERATORS)
def test_shapes(generator: str, discriminator: str, resolution: int, channels: int, classes: int) -> None:
    names = {"generator": generator, "discriminator": discriminator}
    check(*build(**names, resolution=resolution, num_classes=classes, channels=channels, max_channels=8, z_dim=20))


@pytest.mark.long
@pytest.mark.parametrize("resolution", [128, 256, 512])
@pytest.mark.parametrize(("generator", "discriminator"), list(zip(GENERATORS, DISCRIMINATORS, strict=True)))
def test_shapes_of_large_images(generator: str, discriminator: str, resolution: int) -> None:
    names = {"generator": generator, "discriminator": discriminator}
    # Attention at 128 px, the default of one of them, takes seconds.
    check(*build(**names, resolution=resolution, max_channels=8, z_dim=None, g_attention=(64,)))


@pytest.mark.parametrize("discriminator", DISCRIMINATORS)
@pytest.mark.parametrize("generator", GENERATORS)
@pytest.mark.parametrize(
    "settings",
    [
        {"shared_dim": 0},
        {"hierarchical": False},
        {"shared_dim": 0, "hierarchical": False},
        {"d_condition": "concat"},
        {"g_attention": (8, 32), "d_attention": (16, 8), "attention": "scaled"},
        {"g_attention": (8, 32), "d_attention": (16, 8), "num_classes": 1, "hierarchical": False},
        {"d_condition": "concat", "num_classes": 1},
    ],
)
def test_shapes_of_the_options(settings: dict[str, Any], generator: str, discriminator: str) -> None:
    if generator == "biggan-deep":
        settings = {k: v for k, v in settings.items() if k not in ("shared_dim", "hierarchical")}
    check(*build(generator=generator, discriminator=discriminator, **settings))


@pytest.mark.parametrize(
    ("generator", "discriminator", "in_g", "in_d"),
    [
        ("biggan", "biggan", ". 8 . . 32", ". . 8 . ."),
        ("biggan-deep", "biggan-deep", ". . 8 . . . . 32", ". . . . 8 . ."),
        ("transposed", "strided", ". 8 . . 32", ". . 8 ."),
    ],
)
def test_attention_follows_the_last_block_of_its_size(generator: str, discriminator: str, in_g: str, in_d: str) -> None:
    """A dot is a block, a number an attention and the size that it sees."""
    g, d = build(generator=generator, discriminator=discriminator, g_attention=(8, 32), d_attention=(8,))
    steps: list[str] = []
    for block in (*g.blocks, *(d.convs if discriminator == "strided" else d.blocks)):
        block.register_forward_hook(lambda _, args, out: steps.append("."))
    for layer in (*g.attention.values(), *d.attention.values()):
        layer.register_forward_hook(lambda _, args, out: steps.append(str(out.shape[-1])))
    d(g(torch.randn(2, 8), torch.tensor([0, 1])), torch.tensor([0, 1]))
    assert " ".join(steps) == f"{in_g} {in_d}"


@pytest.mark.parametrize(("field", "name"), NETWORKS)
@pytest.mark.parametrize("condition", ["projection", "concat"])
def test_the_class_matters_only_where_there_are_classes(field: str, name: str, condition: str) -> None:
    z, x, (y, other) = torch.randn(2, 8), torch.randn(2, 1, 32, 32), torch.tensor([[0, 1], [2, 3]])
    g, d = build(**{field: name}, d_condition=condition)
    assert not torch.equal(g(z, y), g(z, other)) and not torch.equal(d(x, y), d(x, other))
    g, d = build(**{field: name}, d_condition=condition, num_classes=1)
    assert torch.equal(g(z, y), g(z, other)) and torch.equal(d(x, y), d(x, other))
    assert not {key for network in (g, d) for key in network.state_dict() if key.startswith(("shared", "embed"))}


@pytest.mark.parametrize(
    "settings", [{}, {"shared_dim": 0}, {"hierarchical": False}, {"generator": "biggan-deep"}, {"generator": "transposed"}]
)
def test_weights_of_one_class_are_its_label(settings: dict[str, Any]) -> None:
    g, _ = build(**settings)
    z, y = torch.randn(5, 8), torch.tensor([3, 0, 4, 1, 2])
    torch.testing.assert_close(g(z, F.one_hot(y, 5).float()), g(z, y))
    mixture = torch.rand(5, 5).softmax(1)
    inputs: list[Tensor] = []
    if settings.get("generator") == "transposed":
        g.seed.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
        g(z, mixture)
        torch.testing.assert_close(inputs[0], torch.cat((z, mixture), 1))
    else:
        torch.testing.assert_close(g.embed(mixture), mixture @ g.embed(torch.arange(5)))
        assert not torch.equal(g(z, mixture), g(z, mixture.flip(0)))


@pytest.mark.parametrize(("field", "name"), NETWORKS)
def test_networks_without_spectral_norm_have_no_vectors(field: str, name: str) -> None:
    both = [{key.rpartition(".")[2] for key in network.state_dict()} for network in build(**{field: name})]
    assert all({"u", "v"} <= names for names in both)
    g, d = build(**{field: name}, g_spectral=False)
    assert not any(key.endswith((".u", ".v")) for key in g.state_dict()) and "linear.u" in d.state_dict()
    g, d = build(**{field: name}, d_spectral=False)
    assert not any(key.endswith((".u", ".v")) for key in d.state_dict()) and "seed.u" in g.state_dict()


@pytest.mark.parametrize(("field", "name"), NETWORKS)
def test_bf16_keeps_logits_and_images_in_fp32(field: str, name: str) -> None:
    g, d = build(**{field: name}, g_attention=(16,), d_attention=(16,))
    y = torch.zeros(2, dtype=torch.int64)
    heads: list[torch.dtype] = []
    d.linear.register_forward_hook(lambda _, args, out: heads.extend((args[0].dtype, out.dtype)))
    with torch.autocast("cpu", torch.bfloat16):
        x = g(torch.randn(2, 8), y)
        assert x.dtype == d(x, y).dtype == torch.float32
    assert heads == [torch.float32] * 2


@pytest.mark.parametrize("condition", ["projection", "concat"])
@pytest.mark.parametrize(("field", "name"), NETWORKS)
def test_networks_in_double_stay_in_double(field: str, name: str, condition: str) -> None:
    g, d = (network.double() for network in build(**{field: name}, d_condition=condition))
    z, y = torch.randn(2, 8).double(), torch.tensor([0, 1])
    x = g(z, y)
    assert x.dtype == g(z, F.one_hot(y, 5).double()).dtype == d(x, y).dtype == torch.float64
