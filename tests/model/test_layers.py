"""The blocks, against their formulas written out plainly."""

import copy
import sys

import pytest
import torch
from torch.nn import functional as F

from model import layers, resample
from model.layers import AffineBatchNorm, ConditionalBatchNorm, DBlock, DeepDBlock, DeepGBlock, GBlock, SelfAttention
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


def test_batch_norm_without_a_condition_has_a_gain_and_a_bias() -> None:
    torch.manual_seed(0)
    layer, x = layers.batch_norm(6, 0, 0.5, EPS), torch.randn(4, 6, 3, 3)
    assert isinstance(layer, AffineBatchNorm) and isinstance(layers.batch_norm(6, 1, 0.5, EPS), ConditionalBatchNorm)
    torch.nn.init.normal_(layer.gain)
    torch.nn.init.normal_(layer.bias)
    var, mean = torch.var_mean(x, (0, 2, 3), correction=0, keepdim=True)
    expected = (x - mean) / (var + 0.5).sqrt() * layer.gain[:, None, None] + layer.bias[:, None, None]
    torch.testing.assert_close(layer(x, torch.empty(4, 0)), expected)


@pytest.mark.parametrize("width", [16, 12, 9])
def test_self_attention_is_sagans(width: int) -> None:
    """o_i = sum_j softmax_j(theta_i . phi_j) g_j, phi and g max-pooled; out = x + gamma W o (arXiv 1805.08318)."""
    torch.manual_seed(0)
    layer, x = SelfAttention(width, EPS), torch.randn(2, width, 8, 8)
    assert (layer.query.weight.shape[0], layer.value.weight.shape[0]) == (width // 8, width // 2)
    torch.testing.assert_close(layer(x), x)  # gamma starts at 0
    torch.nn.init.constant_(layer.gamma, 0.7)
    theta = conv(layer.query, x).flatten(2)
    phi, g = (F.max_pool2d(conv(part, x), 2).flatten(2) for part in (layer.key, layer.value))
    weights = torch.einsum("nci,ncj->nij", theta, phi).softmax(2)
    mixed = torch.einsum("nij,ncj->nci", weights, g).unflatten(2, (8, 8))
    torch.testing.assert_close(layer(x), x + 0.7 * conv(layer.output, mixed))


def test_scaled_attention_is_over_all_positions() -> None:
    """softmax(Q K^T / sqrt(d_k)) V (arXiv 1706.03762, equation 1), with d_k = 4 here."""
    torch.manual_seed(0)
    layer, x = SelfAttention(32, EPS, scaled=True), torch.randn(2, 32, 4, 4)
    torch.nn.init.constant_(layer.gamma, 0.7)
    query, key, value = (conv(part, x).flatten(2) for part in (layer.query, layer.key, layer.value))
    weights = (torch.einsum("nci,ncj->nij", query, key) / 2).softmax(2)
    mixed = torch.einsum("nij,ncj->nci", weights, value).unflatten(2, (4, 4))
    torch.testing.assert_close(layer(x), x + 0.7 * conv(layer.output, mixed))


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("scaled", [False, True])
def test_attention_in_training_keeps_no_table_of_all_pairs(scaled: bool, bf16: bool, device: str) -> None:
    """A table [n, h w, h w / 4] would be the largest of all maps; torch falls back to it without a word."""
    layer, x = SelfAttention(32, EPS, scaled).to(device), torch.randn(2, 32, 16, 16, device=device, requires_grad=True)
    kept: list[int] = []
    with (
        torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t),
        torch.autocast(device, torch.bfloat16, enabled=bf16),
    ):
        layer(x)
    assert kept and max(kept) <= x.numel() < 2 * 256 * 64


def test_the_shortcuts_are_the_papers_with_resampling_moved_past_the_1x1_convolution() -> None:
    """Figure 15: G's shortcut upsamples, then convolves; D's convolves what its main path reads, then pools."""
    torch.manual_seed(0)
    x, condition = torch.randn(2, 8, 4, 4), torch.randn(2, 5)
    block = GBlock(8, 4, 5, EPS, EPS, EPS)
    main = conv(block.conv1, F.interpolate(F.relu(block.bn1(x, condition)), scale_factor=2))
    main = conv(block.conv2, F.relu(block.bn2(main, condition)))
    torch.testing.assert_close(block(x, condition), main + conv(block.shortcut, F.interpolate(x, scale_factor=2)))
    for first in (True, False):
        down = DBlock(8, 4, EPS, preactivation=not first, downsample=True)
        main = conv(down.conv2, F.relu(conv(down.conv1, x if first else F.relu(x))))
        assert down.shortcut is not None
        torch.testing.assert_close(down(x), F.avg_pool2d(main, 2) + F.avg_pool2d(conv(down.shortcut, x), 2))
    keep = DBlock(8, 8, EPS, preactivation=True, downsample=False)
    assert keep.shortcut is None
    torch.testing.assert_close(keep(x), x + conv(keep.conv2, F.relu(conv(keep.conv1, F.relu(x)))))


@pytest.mark.parametrize("outputs", [16, 8])
@pytest.mark.parametrize("upsample", [True, False])
def test_the_generators_bottleneck_drops_the_last_channels(outputs: int, upsample: bool) -> None:
    """Figure 16 (left): size changes before the first 3x3 convolution, width in the last 1x1."""
    torch.manual_seed(0)
    block = DeepGBlock(16, outputs, 5, EPS, EPS, EPS, upsample)
    x, condition, factor = torch.randn(2, 16, 4, 4), torch.randn(2, 5), 2 if upsample else 1
    assert block.conv1.weight.shape == (4, 16, 1, 1) and block.conv4.weight.shape == (outputs, 4, 1, 1)
    h = conv(block.conv1, F.relu(block.bn1(x, condition)))
    h = F.relu(block.bn2(h, condition)).repeat_interleave(factor, 2).repeat_interleave(factor, 3)
    h = conv(block.conv3, F.relu(block.bn3(conv(block.conv2, h), condition)))
    h = conv(block.conv4, F.relu(block.bn4(h, condition)))
    kept = x[:, :outputs].repeat_interleave(factor, 2).repeat_interleave(factor, 3)
    torch.testing.assert_close(block(x, condition), h + kept)


@pytest.mark.parametrize("outputs", [16, 8])
@pytest.mark.parametrize("downsample", [True, False])
def test_the_discriminators_bottleneck_adds_channels_behind_its_own(outputs: int, downsample: bool) -> None:
    """Figure 16 (right): the main path is pooled after the last ReLU and before the last 1x1 convolution."""
    torch.manual_seed(0)
    block, x = DeepDBlock(8, outputs, EPS, downsample), torch.randn(2, 8, 4, 4)
    assert block.conv1.weight.shape == (outputs // 4, 8, 1, 1)
    h = conv(block.conv2, F.relu(conv(block.conv1, F.relu(x))))
    h = F.relu(conv(block.conv3, F.relu(h)))
    shortcut = x if block.shortcut is None else torch.cat((x, conv(block.shortcut, x)), 1)
    if downsample:
        h, shortcut = F.avg_pool2d(h, 2), F.avg_pool2d(shortcut, 2)
    torch.testing.assert_close(block(x), conv(block.conv4, h) + shortcut)


BLOCKS = {
    "G": (GBlock(16, 8, 6, EPS, EPS, EPS), True),
    "deep G": (DeepGBlock(16, 8, 6, EPS, EPS, EPS, upsample=True), True),
    "D": (DBlock(16, 24, EPS, preactivation=True, downsample=True), False),
    "deep D": (DeepDBlock(16, 24, EPS, downsample=True), False),
    "attention": (SelfAttention(16, EPS), False),
}
"""With whether a block takes a condition."""


def inputs(conditional: bool, device: str = "cpu") -> tuple[torch.Tensor, ...]:
    x = torch.randn(4, 16, 16, 16, device=device).to(torch.bfloat16).contiguous(memory_format=torch.channels_last)
    return (x, torch.randn(4, 6, device=device)) if conditional else (x,)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("enough", [0, sys.maxsize])
@pytest.mark.parametrize("name", BLOCKS)
def test_bf16_stays_bf16(name: str, enough: int, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU with a nearest upsampling as CUDA has it, which under autocast makes fp32 of all."""
    interpolate = F.interpolate

    def as_on_a_gpu(x: torch.Tensor, **how: float) -> torch.Tensor:
        return interpolate(x.float() if torch.is_autocast_enabled(x.device.type) else x, **how)  # type: ignore[arg-type]

    monkeypatch.setattr(F, "interpolate", as_on_a_gpu)
    monkeypatch.setattr(resample, "ENOUGH", enough)
    block, conditional = BLOCKS[name]
    block = copy.deepcopy(block).to(device)
    fp32 = []
    for layer in block.modules():
        layer.register_forward_hook(lambda layer, _, out: fp32.append(layer) if out.dtype != torch.bfloat16 else None)
    with torch.autocast(device, torch.bfloat16):
        block(*inputs(conditional, device))
    assert not fp32


@pytest.mark.long
@pytest.mark.parametrize("name", BLOCKS)
def test_a_block_is_one_graph(name: str) -> None:
    """With what breaks it, torch.compile would fuse nothing across, and not say so."""
    block, conditional = BLOCKS[name]
    torch._dynamo.reset()
    for learning in (True, False):
        with torch.autocast("cpu", torch.bfloat16), torch.set_grad_enabled(learning):
            found = torch._dynamo.explain(block)(*inputs(conditional))
        assert (found.graph_count, found.graph_break_count) == (1, 0), found.break_reasons
