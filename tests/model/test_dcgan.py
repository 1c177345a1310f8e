"""The generator of transposed convolutions and the discriminator of strided ones, against plain torch."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from model.batchnorm import set_group
from model.config import ModelConfig
from model.dcgan import StridedDiscriminator, TransposedBlock, TransposedGenerator
from model.layers import AffineBatchNorm
from model.spectral import SNConv2d

SMALL: dict[str, Any] = {"generator": "transposed", "discriminator": "strided", "channels": 3, "ch": 8, "z_dim": 6}


def conv(layer: SNConv2d, x: Tensor, stride: int = 1) -> Tensor:
    return F.conv2d(x, layer.normalised_weight(), layer.bias, stride, padding=1)


def norm(layer: AffineBatchNorm, x: Tensor) -> Tensor:
    var, mean = torch.var_mean(x, (0, 2, 3), correction=0, keepdim=True)
    gain, bias = (p[:, None, None] for p in (layer.gain, layer.bias))
    return (x - mean) / (var + 1e-4).sqrt() * gain + bias


def away_from_start(network: torch.nn.Module) -> None:
    """Gains of 1 and biases of 0 hide whatever does not use them."""
    for parameter in network.parameters():
        if parameter.dim() == 1:
            torch.nn.init.normal_(parameter)


def test_the_transposed_block_is_its_formula() -> None:
    torch.manual_seed(0)
    block, x = TransposedBlock(6, 4, 1e-4, 1e-4), torch.randn(2, 6, 4, 4)
    away_from_start(block)
    h = norm(block.bn1, conv(block.conv1, x)).relu()
    # A transposed convolution of stride 2 is a convolution of the input with zeros between, with a kernel that is turned.
    apart = torch.zeros(2, 4, 7, 7)
    apart[:, :, ::2, ::2] = h
    kernel = block.up.normalised_weight().transpose(0, 1).flip(2, 3)
    h = F.conv2d(apart, kernel, block.up.bias, padding=2)
    torch.testing.assert_close(block(x), norm(block.bn2, conv(block.conv2, h)).relu(), rtol=1e-4, atol=1e-5)


def test_the_generator_reads_z_and_the_class_and_doubles_from_4() -> None:
    torch.manual_seed(0)
    g = TransposedGenerator(ModelConfig(32, 5, **SMALL))
    away_from_start(g)
    z, y = torch.randn(2, 6), torch.tensor([4, 1])
    h = torch.cat((z, F.one_hot(y, 5)), 1) @ g.seed.normalised_weight().mT + g.seed.bias
    h = h.view(2, 64, 4, 4)
    for block in g.blocks:
        h = block(h)
    assert g.config.g_channels == [64, 32, 16, 8]
    torch.testing.assert_close(g(z, y), conv(g.output, h).tanh())


@pytest.mark.parametrize("condition", ["projection", "concat"])
def test_the_discriminator_is_its_formula(condition: str) -> None:
    torch.manual_seed(0)
    d = StridedDiscriminator(ModelConfig(32, 5, **SMALL, d_condition=condition))  # type: ignore[arg-type]
    away_from_start(d)
    x, y = torch.randn(3, 3, 32, 32), torch.tensor([4, 1, 1])
    maps = F.one_hot(y, 5)[:, :, None, None].expand(3, 5, 32, 32)
    h = F.leaky_relu(conv(d.convs[0], torch.cat((x, maps), 1) if condition == "concat" else x, 2), 0.2)
    h = F.leaky_relu(norm(d.norms[0], conv(d.convs[1], h, 2)), 0.2)
    h = F.leaky_relu(norm(d.norms[1], conv(d.convs[2], h, 2)), 0.2)
    assert h.shape == (3, 32, 4, 4) and len(d.convs) == 3
    expected = (h.flatten(1) * d.linear.normalised_weight()).sum(1) + d.linear.bias
    if condition == "projection":
        expected = expected + (d.embed.normalised_weight()[y] * h.sum((2, 3))).sum(1)
    torch.testing.assert_close(d(x, y), expected, rtol=1e-4, atol=1e-4)


def test_real_and_fake_images_of_one_forward_are_normalised_apart() -> None:
    torch.manual_seed(0)
    d = StridedDiscriminator(ModelConfig(32, 5, **SMALL))
    real, fake = torch.randn(3, 3, 32, 32), torch.rand(3, 3, 32, 32) - 2
    y, y_fake = torch.tensor([4, 1, 1]), torch.tensor([0, 2, 3])
    both, labels = torch.cat((real, fake)), torch.cat((y, y_fake))
    apart = torch.cat((d(real, y), d(fake, y_fake)))
    assert not torch.allclose(d(both, labels), apart, rtol=0.01)
    set_group(d, 3)
    torch.testing.assert_close(d(both, labels), apart, rtol=1e-4, atol=1e-5)
