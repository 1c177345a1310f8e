"""The blocks of BigGAN and BigGAN-deep (arXiv 1809.11096, appendix B, figures 15 and 16). `sn` None: no spectral norm."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .batchnorm import BatchNorm
from .resample import doubled
from .spectral import SNConv2d, SNLinear


class ConditionalBatchNorm(nn.Module):
    """Batch norm with gain and bias from a condition: x [n, C, h, w], condition [n, k] -> [n, C, h, w]."""

    def __init__(self, features: int, condition: int, eps: float, sn: float | None):
        super().__init__()
        self.norm = BatchNorm(features, eps)
        self.gain = SNLinear(condition, features, sn, bias=False)
        self.bias = SNLinear(condition, features, sn, bias=False)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        # The learned gain is an offset from 1: without the 1 deep generators do not train.
        gain = (1 + self.gain(condition))[:, :, None, None]
        bias = self.bias(condition)[:, :, None, None]
        x = self.norm(x)
        return torch.addcmul(bias.to(x.dtype), x, gain.to(x.dtype))


class AffineBatchNorm(nn.Module):
    """Batch norm with one learned gain and bias per channel: [n, C, h, w] -> [n, C, h, w]."""

    def __init__(self, features: int, eps: float):
        super().__init__()
        self.norm = BatchNorm(features, eps)
        self.gain = nn.Parameter(torch.ones(features))
        self.bias = nn.Parameter(torch.zeros(features))

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        x = self.norm(x)
        return torch.addcmul(self.bias[:, None, None].to(x.dtype), x, self.gain[:, None, None].to(x.dtype))


def batch_norm(features: int, condition: int, eps: float, sn: float | None) -> nn.Module:
    """Conditional where there is something to condition on."""
    return ConditionalBatchNorm(features, condition, eps, sn) if condition else AffineBatchNorm(features, eps)


class SelfAttention(nn.Module):
    """Self-attention on [n, C, h, w], added with a learned gain that starts at 0.

    As in SAGAN (arXiv 1805.08318) and BigGAN, keys and values are max-pooled and nothing is scaled; `scaled` is
    softmax(Q K^T / sqrt(d_k)) V over all positions (arXiv 1706.03762, equation 1).
    """

    def __init__(self, channels: int, sn: float | None, scaled: bool = False):
        super().__init__()
        self.scaled = scaled
        self.query = SNConv2d(channels, channels // 8, 1, sn, bias=False)
        self.key = SNConv2d(channels, channels // 8, 1, sn, bias=False)
        self.value = SNConv2d(channels, channels // 2, 1, sn, bias=False)
        self.output = SNConv2d(channels // 2, channels, 1, sn, bias=False)
        self.gamma = nn.Parameter(torch.zeros(1))  # not a scalar: DeepSpeed cannot broadcast one

    def forward(self, x: Tensor) -> Tensor:
        n, _, h, w = x.shape
        query, key, value = self.query(x), self.key(x), self.value(x)
        if not self.scaled:
            key, value = F.max_pool2d(key, 2), F.max_pool2d(value, 2)
        scale = query.shape[1] ** -0.5 if self.scaled else 1.0
        missing = value.shape[1] - query.shape[1]
        # Fused kernels, which keep no table of all pairs, want [n, heads, places, features]; most want one width of all three.
        query, key, value = (part.flatten(2).mT.unsqueeze(1) for part in (query, key, value))
        if self.training:
            query, key = F.pad(query, (0, missing)), F.pad(key, (0, missing))
        mixed = F.scaled_dot_product_attention(query, key, value, scale=scale)
        mixed = mixed.mT.reshape(n, -1, h, w).contiguous(memory_format=torch.channels_last)
        return x + self.gamma.to(x.dtype) * self.output(mixed)


class GBlock(nn.Module):
    """Residual block that doubles the size: [n, in, h, w], condition [n, k] -> [n, out, 2h, 2w]."""

    def __init__(self, inputs: int, outputs: int, condition: int, eps: float, sn: float | None, norm_sn: float | None):
        super().__init__()
        self.bn1 = batch_norm(inputs, condition, eps, norm_sn)
        self.bn2 = batch_norm(outputs, condition, eps, norm_sn)
        self.conv1 = SNConv2d(inputs, outputs, 3, sn, resize="up")
        self.conv2 = SNConv2d(outputs, outputs, 3, sn)
        self.shortcut = SNConv2d(inputs, outputs, 1, sn)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        h = self.conv1(F.relu(self.bn1(x, condition), inplace=True))
        h = self.conv2(F.relu(self.bn2(h, condition), inplace=True))
        # A 1x1 convolution and nearest upsampling commute: convolving first is a quarter of the work.
        return h + doubled(self.shortcut(x))


class DeepGBlock(nn.Module):
    """Bottleneck block: [n, in, h, w], condition [n, k] -> [n, out, 2h, 2w], or [n, out, h, w] without `upsample`.

    The shortcut has no weights: it drops the last in - out channels.
    """

    def __init__(
        self, inputs: int, outputs: int, condition: int, eps: float, sn: float | None, norm_sn: float | None, upsample: bool
    ):
        super().__init__()
        hidden = inputs // 4
        self.outputs, self.upsample = outputs, upsample
        self.bn1 = batch_norm(inputs, condition, eps, norm_sn)
        self.bn2 = batch_norm(hidden, condition, eps, norm_sn)
        self.bn3 = batch_norm(hidden, condition, eps, norm_sn)
        self.bn4 = batch_norm(hidden, condition, eps, norm_sn)
        self.conv1 = SNConv2d(inputs, hidden, 1, sn)
        self.conv2 = SNConv2d(hidden, hidden, 3, sn, resize="up" if upsample else None)
        self.conv3 = SNConv2d(hidden, hidden, 3, sn)
        self.conv4 = SNConv2d(hidden, outputs, 1, sn)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        h = self.conv1(F.relu(self.bn1(x, condition), inplace=True))
        h = self.conv2(F.relu(self.bn2(h, condition), inplace=True))
        h = self.conv3(F.relu(self.bn3(h, condition), inplace=True))
        h = self.conv4(F.relu(self.bn4(h, condition), inplace=True))
        kept = x[:, : self.outputs]
        return h + (doubled(kept) if self.upsample else kept)


class DBlock(nn.Module):
    """Residual block: [n, in, h, w] -> [n, out, h / 2, w / 2], or [n, out, h, w] without `downsample`.

    With `relu_shortcut` the preactivation's ReLU comes before the shortcut, too.
    """

    def __init__(
        self, inputs: int, outputs: int, sn: float | None, preactivation: bool, downsample: bool, relu_shortcut: bool = False
    ):
        super().__init__()
        self.preactivation, self.downsample = preactivation, downsample
        self.relu_shortcut = relu_shortcut and preactivation
        self.conv1 = SNConv2d(inputs, outputs, 3, sn)
        self.conv2 = SNConv2d(outputs, outputs, 3, sn, resize="down" if downsample else None)
        self.shortcut = SNConv2d(inputs, outputs, 1, sn) if downsample or inputs != outputs else None

    def forward(self, x: Tensor) -> Tensor:
        rectified = F.relu(x) if self.preactivation else x
        h = self.conv2(F.relu(self.conv1(rectified), inplace=True))
        # Pooling and a 1x1 convolution commute too: pool first.
        shortcut = rectified if self.relu_shortcut else x
        shortcut = F.avg_pool2d(shortcut, 2) if self.downsample else shortcut
        return h + (shortcut if self.shortcut is None else self.shortcut(shortcut))


class DeepDBlock(nn.Module):
    """Bottleneck block: [n, in, h, w] -> [n, out, h / 2, w / 2], or [n, out, h, w] without `downsample`.

    The shortcut keeps the input's channels; a 1x1 convolution makes the out - in that are missing.
    """

    def __init__(self, inputs: int, outputs: int, sn: float | None, downsample: bool, relu_shortcut: bool = False):
        super().__init__()
        hidden = outputs // 4
        self.downsample, self.relu_shortcut = downsample, relu_shortcut
        self.conv1 = SNConv2d(inputs, hidden, 1, sn)
        self.conv2 = SNConv2d(hidden, hidden, 3, sn)
        self.conv3 = SNConv2d(hidden, hidden, 3, sn)
        self.conv4 = SNConv2d(hidden, outputs, 1, sn)
        self.shortcut = SNConv2d(inputs, outputs - inputs, 1, sn) if outputs > inputs else None

    def pool(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(x, 2) if self.downsample else x

    def forward(self, x: Tensor) -> Tensor:
        rectified = F.relu(x)
        h = self.conv2(F.relu(self.conv1(rectified), inplace=True))
        h = self.conv4(self.pool(F.relu(self.conv3(F.relu(h, inplace=True)), inplace=True)))
        x = self.pool(rectified if self.relu_shortcut else x)
        return h + (x if self.shortcut is None else torch.cat((x, self.shortcut(x)), 1))
