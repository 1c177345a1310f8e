"""The blocks, against their formulas written out plainly."""

import torch
from torch.nn import functional as F

from model.layers import ConditionalBatchNorm, DBlock, GBlock, SelfAttention
from model.spectral import SNConv2d

EPS = 1e-4


def conv(layer: SNConv2d, x: torch.Tensor) -> torch.Tensor:
    return F.conv2d(x, layer.normalised_weight(), layer.bias, padding=layer.padding)


def test_the_gain_of_conditional_batch_norm_is_an_offset_from_one() -> None:
    torch.manual_seed(0)
    layer = ConditionalBatchNorm(6, 5, EPS, EPS)
    x, condition = torch.randn(4, 6, 3, 3), torch.randn(4, 5)
    var, mean = torch.var_mean(x, (0, 2, 3), correction=0, keepdim=True)
    gain = (condition @ layer.gain.normalised_weight().mT)[:, :, None, None]
    bias = (condition @ layer.bias.normalised_weight().mT)[:, :, None, None]
    torch.testing.assert_close(layer(x, condition), (x - mean) / (var + EPS).sqrt() * (1 + gain) + bias)


def test_self_attention_is_sagans() -> None:
    """o_i = sum_j softmax_j(theta_i . phi_j) g_j, phi and g max-pooled; out = x + gamma W o (arXiv 1805.08318)."""
    torch.manual_seed(0)
    layer, x = SelfAttention(16, EPS), torch.randn(2, 16, 8, 8)
    torch.testing.assert_close(layer(x), x)  # gamma starts at 0
    torch.nn.init.constant_(layer.gamma, 0.7)
    theta = conv(layer.query, x).flatten(2)
    phi, g = (F.max_pool2d(conv(part, x), 2).flatten(2) for part in (layer.key, layer.value))
    weights = torch.einsum("nci,ncj->nij", theta, phi).softmax(2)
    mixed = torch.einsum("nij,ncj->nci", weights, g).unflatten(2, (8, 8))
    torch.testing.assert_close(layer(x), x + 0.7 * conv(layer.output, mixed))


def test_the_shortcuts_are_the_papers_with_resampling_moved_past_the_1x1_convolution() -> None:
    """Figure 15: G's shortcut upsamples, then convolves; D's convolves what its main path reads, then pools."""
    torch.manual_seed(0)
    x, condition = torch.randn(2, 8, 4, 4), torch.randn(2, 5)
    block = GBlock(8, 4, 5, EPS, EPS)
    main = conv(block.conv1, F.interpolate(F.relu(block.bn1(x, condition)), scale_factor=2))
    main = conv(block.conv2, F.relu(block.bn2(main, condition)))
    torch.testing.assert_close(block(x, condition), main + conv(block.shortcut, F.interpolate(x, scale_factor=2)))
    for first in (True, False):
        down = DBlock(8, 4, EPS, preactivation=not first, downsample=True)
        main = conv(down.conv2, F.relu(conv(down.conv1, x if first else F.relu(x))))
        assert down.shortcut is not None
        torch.testing.assert_close(down(x), F.avg_pool2d(main, 2) + F.avg_pool2d(conv(down.shortcut, x), 2))
