"""The blocks of BigGAN (arXiv 1809.11096, appendix B, figure 15)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .batchnorm import BatchNorm
from .spectral import SNConv2d, SNLinear


class ConditionalBatchNorm(nn.Module):
    """Batch norm with gain and bias from a condition: x [n, C, h, w], condition [n, k] -> [n, C, h, w]."""

    def __init__(self, features: int, condition: int, bn_eps: float, sn_eps: float):
        super().__init__()
        self.norm = BatchNorm(features, bn_eps)
        self.gain = SNLinear(condition, features, sn_eps, bias=False)
        self.bias = SNLinear(condition, features, sn_eps, bias=False)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        # The learned gain is an offset from 1: without the 1 deep generators do not train.
        gain = (1 + self.gain(condition))[:, :, None, None]
        bias = self.bias(condition)[:, :, None, None]
        x = self.norm(x)
        return torch.addcmul(bias.to(x.dtype), x, gain.to(x.dtype))


class AffineBatchNorm(nn.Module):
    """Batch norm with one learned gain and bias per channel: [n, C, h, w] -> [n, C, h, w]."""

    def __init__(self, features: int, bn_eps: float):
        super().__init__()
        self.norm = BatchNorm(features, bn_eps)
        self.gain = nn.Parameter(torch.ones(features))
        self.bias = nn.Parameter(torch.zeros(features))

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        return torch.addcmul(self.bias[:, None, None].to(x.dtype), x, self.gain[:, None, None].to(x.dtype))


class SelfAttention(nn.Module):
    """Self-attention as in SAGAN (arXiv 1805.08318) and BigGAN: keys and values max-pooled, no scaling, gain from 0."""

    def __init__(self, channels: int, sn_eps: float):
        super().__init__()
        self.query = SNConv2d(channels, channels // 8, 1, sn_eps, bias=False)
        self.key = SNConv2d(channels, channels // 8, 1, sn_eps, bias=False)
        self.value = SNConv2d(channels, channels // 2, 1, sn_eps, bias=False)
        self.output = SNConv2d(channels // 2, channels, 1, sn_eps, bias=False)
        self.gamma = nn.Parameter(torch.zeros(1))  # not a scalar: DeepSpeed cannot broadcast one

    def forward(self, x: Tensor) -> Tensor:
        n, _, h, w = x.shape
        query = self.query(x).flatten(2).mT
        key = F.max_pool2d(self.key(x), 2).flatten(2).mT
        value = F.max_pool2d(self.value(x), 2).flatten(2).mT
        mixed = F.scaled_dot_product_attention(query, key, value, scale=1.0)
        mixed = mixed.mT.reshape(n, -1, h, w).contiguous(memory_format=torch.channels_last)
        return x + self.gamma.to(x.dtype) * self.output(mixed)


class GBlock(nn.Module):
    """Residual block that doubles the size: [n, in, h, w], condition [n, k] -> [n, out, 2h, 2w]."""

    def __init__(self, inputs: int, outputs: int, condition: int, bn_eps: float, sn_eps: float):
        super().__init__()
        self.bn1 = ConditionalBatchNorm(inputs, condition, bn_eps, sn_eps)
        self.bn2 = ConditionalBatchNorm(outputs, condition, bn_eps, sn_eps)
        self.conv1 = SNConv2d(inputs, outputs, 3, sn_eps)
        self.conv2 = SNConv2d(outputs, outputs, 3, sn_eps)
        self.shortcut = SNConv2d(inputs, outputs, 1, sn_eps)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        h = F.interpolate(F.relu(self.bn1(x, condition)), scale_factor=2.0)
        h = self.conv2(F.relu(self.bn2(self.conv1(h), condition)))
        # A 1x1 convolution and nearest upsampling commute: convolving first is a quarter of the work.
        return h + F.interpolate(self.shortcut(x), scale_factor=2.0)


class DBlock(nn.Module):
    """Residual block: [n, in, h, w] -> [n, out, h / 2, w / 2], or [n, out, h, w] without `downsample`."""

    def __init__(self, inputs: int, outputs: int, sn_eps: float, preactivation: bool, downsample: bool):
        super().__init__()
        self.preactivation, self.downsample = preactivation, downsample
        self.conv1 = SNConv2d(inputs, outputs, 3, sn_eps)
        self.conv2 = SNConv2d(outputs, outputs, 3, sn_eps)
        self.shortcut = SNConv2d(inputs, outputs, 1, sn_eps) if downsample or inputs != outputs else None

    def pool(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(x, 2) if self.downsample else x

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv2(F.relu(self.conv1(F.relu(x) if self.preactivation else x)))
        # Pooling and a 1x1 convolution commute too: pool first.
        shortcut = self.pool(x)
        return self.pool(h) + (shortcut if self.shortcut is None else self.shortcut(shortcut))
