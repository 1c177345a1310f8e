"""Spectral normalisation: sigma, its gradient, and who moves u and v."""

import torch
from torch.nn import functional as F

from model.biggan import Discriminator, ModelConfig
from model.spectral import SNConv2d, SNLinear, power_iteration, spectral_layers


def test_power_iteration_finds_the_largest_singular_value() -> None:
    torch.manual_seed(0)
    layer = SNConv2d(6, 10, 3, eps=1e-4)
    torch.nn.init.normal_(layer.weight)
    layer.iterate(200)
    largest = torch.linalg.svdvals(layer.weight.detach().flatten(1))[0]
    torch.testing.assert_close(layer.weight.detach() / layer.normalised_weight().detach(), largest.expand(10, 6, 3, 3))


def test_a_fresh_layer_has_norm_one() -> None:
    """Orthogonal weights have sigma 1, and the vectors are warm: the first step must not divide by a wrong sigma."""
    for layer in spectral_layers(Discriminator(ModelConfig(32, 3, ch=8))):
        largest = torch.linalg.svdvals(layer.normalised_weight().detach().flatten(1))[0]
        assert abs(float(largest) - 1) < 1e-3


def test_forwards_and_backwards_leave_u_and_v_alone() -> None:
    d = Discriminator(ModelConfig(32, 3, channels=1, ch=8))
    before = [(layer.u.clone(), layer.v.clone()) for layer in spectral_layers(d)]
    for layer in spectral_layers(d):  # away from the orthogonal start, where iteration stands still
        torch.nn.init.normal_(layer.weight)
    for _ in range(3):
        d(torch.randn(2, 1, 32, 32), torch.tensor([0, 1])).sum().backward()
    assert all(
        torch.equal(u, layer.u) and torch.equal(v, layer.v) for (u, v), layer in zip(before, spectral_layers(d), strict=True)
    )
    power_iteration(d)
    assert not any(torch.equal(u, layer.u) for (u, _), layer in zip(before, spectral_layers(d), strict=True) if len(u) > 1)


def test_gradient_goes_through_sigma() -> None:
    """d(W / sigma)/dW with u and v held constant (arXiv 1802.05957, section 2.2), against central differences in float64."""
    torch.manual_seed(0)
    layer = SNLinear(5, 4, eps=1e-4).double()
    x, direction = torch.randn(3, 5).double(), torch.randn(4, 5).double()

    def loss(weight: torch.Tensor) -> torch.Tensor:
        sigma = layer.u @ weight @ layer.v
        return F.linear(x, weight / sigma, layer.bias).square().sum()

    layer(x).square().sum().backward()
    weight, step = layer.weight.detach(), 1e-6
    slope = (loss(weight + step * direction) - loss(weight - step * direction)) / (2 * step)
    torch.testing.assert_close((layer.weight.grad * direction).sum(), slope.detach(), rtol=1e-6, atol=1e-8)
