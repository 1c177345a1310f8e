"""A generator of transposed convolutions and a discriminator of strided ones, both with plain batch norm.

The older form of a class-conditional GAN (DCGAN, arXiv 1511.06434; labels as in arXiv 1411.1784), beside BigGAN's.
"""

from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .biggan import attention_layers, class_weights, d_inputs, projects, with_maps
from .layers import AffineBatchNorm
from .recompute import Recomputing
from .spectral import SNConv2d, SNConvTranspose2d, SNEmbedding, SNLinear

if TYPE_CHECKING:
    from .config import ModelConfig


class TransposedBlock(nn.Module):
    """conv-BN-ReLU, transposed convolution, conv-BN-ReLU: [n, in, h, w] -> [n, out, 2h, 2w]."""

    def __init__(self, inputs: int, outputs: int, eps: float, sn: float | None):
        super().__init__()
        self.conv1 = SNConv2d(inputs, outputs, 3, sn)
        self.bn1 = AffineBatchNorm(outputs, eps)
        self.up = SNConvTranspose2d(outputs, outputs, sn)
        self.conv2 = SNConv2d(outputs, outputs, 3, sn)
        self.bn2 = AffineBatchNorm(outputs, eps)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(self.up(h))))


class TransposedGenerator(Recomputing):
    """z [n, latent_dim] float32, y [n] int64 -> images [n, channels, r, r] float32 in -1..1.

    linear(z and one-hot label) -> 8 ch x 4 x 4, then a block for each doubling; widths halve down to ch.
    y may also be class weights [n, num_classes] float32.
    """

    def __init__(self, config: "ModelConfig"):
        super().__init__()
        self.config = config
        sn = config.sn_eps if config.g_spectral else None
        widths, classes = config.g_channels, config.num_classes if config.conditional else 0
        self.seed = SNLinear(config.latent_dim + classes, widths[0] * 16, sn)
        self.blocks = nn.ModuleList(TransposedBlock(i, o, config.bn_eps, sn) for i, o in pairwise(widths))
        places = zip(range(len(self.blocks)), widths[1:], config.g_sizes, strict=True)
        self.attention = attention_layers(((i, w) for i, w, size in places if size in config.g_attention_at), config, sn)
        self.output = SNConv2d(widths[-1], config.channels, 3, sn)

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        if self.config.conditional:
            z = torch.cat((z, class_weights(y, self.config.num_classes).to(z.dtype)), 1)
        h = self.seed(z).unflatten(1, (-1, 4, 4)).contiguous(memory_format=torch.channels_last)
        for i, block in enumerate(self.blocks):
            h = self.run(block, h)
            if str(i) in self.attention:
                h = self.attention[str(i)](h)
        image = self.output(h)
        return (image if image.dtype == torch.float64 else image.float()).tanh()


class StridedDiscriminator(Recomputing):
    """Images x [n, channels, r, r] in -1..1, y [n] int64 -> logits [n] float32.

    Convolutions of stride 2 down to 4 x 4, batch norm on all but the first, and a linear head on all that is left. Batch norm
    always takes a batch's own statistics, and `model.batchnorm.set_group` keeps those of real and fake images apart.
    """

    def __init__(self, config: "ModelConfig"):
        super().__init__()
        self.config = config
        sn = config.sn_eps if config.d_spectral else None
        widths = [d_inputs(config), *config.d_channels]
        self.convs = nn.ModuleList(SNConv2d(i, o, 4, sn, stride=2) for i, o in pairwise(widths))
        self.norms = nn.ModuleList(AffineBatchNorm(width, config.bn_eps) for width in widths[2:])
        places = zip(range(len(self.convs)), widths[1:], config.d_sizes, strict=True)
        self.attention = attention_layers(((i, w) for i, w, size in places if size in config.d_attention_at), config, sn)
        self.linear = SNLinear(widths[-1] * 16, 1, sn)
        if projects(config):
            self.embed = SNEmbedding(config.num_classes, widths[-1], sn)

    def stage(self, i: int, h: Tensor) -> Tensor:
        """Convolution i with what follows it: [n, in, h, w] -> [n, out, h / 2, w / 2]."""
        h = self.convs[i](h)
        return F.leaky_relu(self.norms[i - 1](h) if i else h, 0.2)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        h = with_maps(x, y, self.config).contiguous(memory_format=torch.channels_last)
        for i in range(len(self.convs)):
            h = self.run(self.stage, i, h)
            if str(i) in self.attention:
                h = self.attention[str(i)](h)
        with torch.autocast(x.device.type, enabled=False):
            h = h.to(x.dtype)
            logits = self.linear(h.flatten(1))[:, 0]
            return logits + (self.embed(y) * h.sum((2, 3))).sum(1) if projects(self.config) else logits
