"""Spectral normalisation: sigma, its gradient, and who moves u and v."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.config import ModelConfig
from model.networks import build_discriminator, build_generator
from model.resample import Resize
from model.spectral import (
    SNConv2d,
    SNConvTranspose2d,
    SNEmbedding,
    SNLinear,
    SpectralNorm,
    power_iteration,
    singular_values,
    spectral_layers,
)

SMALL: dict[str, Any] = {"resolution": 32, "num_classes": 3, "channels": 1, "ch": 8, "shared_dim": 6, "z_dim": 8}
KINDS = [("biggan", "biggan"), ("biggan-deep", "biggan-deep"), ("transposed", "strided")]
LAYERS: dict[str, Callable[[], SpectralNorm]] = {
    "convolution": lambda: SNConv2d(6, 10, 3, 1e-4),
    "strided": lambda: SNConv2d(6, 10, 4, 1e-4, stride=2),
    "transposed": lambda: SNConvTranspose2d(6, 10, 1e-4),
    "linear": lambda: SNLinear(5, 4, 1e-4),
    "embedding": lambda: SNEmbedding(5, 4, 1e-4),
}


def networks(generator: str, discriminator: str) -> list[nn.Module]:
    torch.manual_seed(0)
    places = {"g_attention": (16,), "d_attention": (8,)}
    config = ModelConfig(**SMALL, **places, generator=generator, discriminator=discriminator)  # type: ignore[arg-type]
    return [build_generator(config), build_discriminator(config)]


def largest(layer: SpectralNorm) -> Tensor:
    """The largest singular value of [out, rest]; a transposed convolution's weight begins with its inputs."""
    weight = layer.weight.detach()
    rows = weight.transpose(0, 1) if isinstance(layer, nn.ConvTranspose2d) else weight
    return torch.linalg.svdvals(rows.flatten(1))[0]


@pytest.mark.parametrize("kind", LAYERS)
def test_power_iteration_finds_the_largest_singular_value(kind: str) -> None:
    torch.manual_seed(0)
    layer = LAYERS[kind]()
    nn.init.normal_(layer.weight)
    power_iteration(layer, 200)
    ratio = layer.weight.detach() / layer.normalised_weight().detach()
    torch.testing.assert_close(ratio, largest(layer).expand_as(ratio))


@pytest.mark.parametrize(("generator", "discriminator"), KINDS)
def test_a_fresh_layer_has_norm_one(generator: str, discriminator: str) -> None:
    """Orthogonal weights have sigma 1, and the vectors are warm: the first step must not divide by a wrong sigma."""
    layers = [layer for network in networks(generator, discriminator) for layer in spectral_layers(network)]
    assert len(layers) > 15
    for layer in layers:
        sigma = (layer.weight / layer.normalised_weight()).detach().median()
        assert abs(float(sigma / largest(layer)) - 1) < 1e-3 and abs(float(largest(layer)) - 1) < 1e-3


@pytest.mark.parametrize(("generator", "discriminator"), KINDS)
def test_forwards_and_backwards_leave_u_and_v_alone(generator: str, discriminator: str) -> None:
    g, d = networks(generator, discriminator)
    layers = [layer for network in (g, d) for layer in spectral_layers(network)]
    for layer in layers:  # away from the orthogonal start, where iteration stands still
        nn.init.normal_(layer.weight)
    before = [(layer.u.clone(), layer.v.clone()) for layer in layers]
    z, y = torch.randn(2, 8), torch.tensor([0, 1])
    for _ in range(3):
        d(g(z, y), y).sum().backward()
    assert all(torch.equal(u, layer.u) and torch.equal(v, layer.v) for (u, v), layer in zip(before, layers, strict=True))
    power_iteration(g)
    power_iteration(d)
    assert not any(torch.equal(u, layer.u) for (u, _), layer in zip(before, layers, strict=True) if len(u) > 1)


@pytest.mark.parametrize("kind", LAYERS)
def test_gradient_goes_through_sigma(kind: str) -> None:
    """d(W / sigma)/dW with u and v held constant (arXiv 1802.05957, section 2.2), against central differences in float64."""
    torch.manual_seed(0)
    layer = LAYERS[kind]().double()
    nn.init.normal_(layer.weight)
    x = {"embedding": torch.tensor([0, 2, 4]), "linear": torch.randn(3, 5).double()}.get(kind, torch.randn(2, 6, 4, 4).double())
    plain: Callable[[Tensor], Tensor] = {
        "convolution": lambda w: F.conv2d(x, w, layer.bias, padding=1),
        "strided": lambda w: F.conv2d(x, w, layer.bias, 2, padding=1),
        "transposed": lambda w: F.conv_transpose2d(x, w, layer.bias, 2, padding=1),
        "linear": lambda w: F.linear(x, w, layer.bias),
        "embedding": lambda w: w[x],
    }[kind]
    direction = torch.randn(layer.weight.shape).double()

    def loss(weight: Tensor) -> Tensor:
        rows = weight.transpose(0, 1) if kind == "transposed" else weight
        return plain(weight / (layer.u @ rows.flatten(1) @ layer.v)).square().sum()

    layer(x).square().sum().backward()
    weight, step = layer.weight.detach(), 1e-6
    slope = (loss(weight + step * direction) - loss(weight - step * direction)) / (2 * step)
    torch.testing.assert_close((layer.weight.grad * direction).sum(), slope.detach(), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("resize", [None, "up", "down"])
@pytest.mark.parametrize("bias", [True, False])
def test_a_weight_larger_than_what_it_makes_is_not_touched(
    resize: Resize | None, bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    layer = SNConv2d(64, 8, 3, 1e-4, bias, resize=resize).double()
    nn.init.normal_(layer.weight)
    x = torch.randn(2, 64, 4, 4).double().contiguous(memory_format=torch.channels_last).requires_grad_()
    monkeypatch.delattr(SpectralNorm, "normalised_weight")
    found = layer(x)
    direction = torch.randn_like(found)
    parts = [x, *layer.parameters()]
    gradients = torch.autograd.grad(found, parts, direction)
    weight = layer.weight / (layer.u @ layer.weight.flatten(1) @ layer.v)
    expected = F.conv2d(F.interpolate(x, scale_factor=2.0) if resize == "up" else x, weight, layer.bias, padding=1)
    expected = F.avg_pool2d(expected, 2) if resize == "down" else expected
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(gradients, torch.autograd.grad(expected, parts, direction))


def test_a_weight_is_touched_where_it_is_the_smaller_or_not_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, divided = SNConv2d(64, 8, 3, 1e-4), []
    whole = SpectralNorm.normalised_weight
    monkeypatch.setattr(SpectralNorm, "normalised_weight", lambda *args: divided.append(1) or whole(*args))
    few, many = torch.randn(2, 64, 4, 4), torch.randn(32, 64, 4, 4)  # 64 x 9 weights for an output, 32 and 512 places
    layer(few)
    assert not divided
    layer(many)
    layer.eval()(few)
    assert len(divided) == 2


def test_sigma_is_fp32_where_autocast_divides_by_it() -> None:
    torch.manual_seed(0)
    layer, x = SNConv2d(64, 8, 3, 1e-4), torch.randn(2, 64, 4, 4)
    assert layer.weight_and_sigma()[1].dtype == torch.float32
    exact = layer(x)
    exact.square().sum().backward()
    gradient, layer.weight.grad = layer.weight.grad, None
    with torch.autocast("cpu", torch.bfloat16):
        found = layer(x)
        assert layer.weight_and_sigma()[1].dtype == torch.float32
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), exact, rtol=0.02, atol=0.02)
    found.float().square().sum().backward()
    assert layer.weight.grad.dtype == torch.float32 and (layer.weight.grad - gradient).norm() < 0.01 * gradient.norm()


def test_without_eps_a_layer_is_a_plain_one() -> None:
    layer = SNLinear(5, 4, None)
    assert layer.normalised_weight() is layer.weight and not list(layer.buffers()) and not list(spectral_layers(layer))
    power_iteration(layer)


@pytest.mark.parametrize("shape", [(40, 90), (90, 40), (2, 30), (1, 7)])
def test_the_largest_singular_values_are_found_without_random_state(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * torch.linspace(1, 3, shape[1])
    before = torch.random.get_rng_state()
    found = singular_values(matrix)
    assert torch.equal(torch.random.get_rng_state(), before)
    exact = torch.linalg.svdvals(matrix)[:3]
    torch.testing.assert_close(found, exact, rtol=0.01, atol=0)
    assert (found <= exact * (1 + 1e-5)).all()
