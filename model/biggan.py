"""BigGAN and BigGAN-deep: class-conditional generator and discriminator (arXiv 1809.11096, appendix B).

`model.sizes` has all sizes. The parameter counts of the published models are tests (tests/model/test_biggan.py).
"""

from collections.abc import Iterable
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .layers import AffineBatchNorm, DBlock, DeepDBlock, DeepGBlock, GBlock, SelfAttention
from .recompute import Recomputing
from .spectral import SNConv2d, SNEmbedding, SNLinear

if TYPE_CHECKING:
    from .config import ModelConfig


def class_weights(y: Tensor, num_classes: int) -> Tensor:
    """Labels [n] int64 -> one-hot [n, num_classes] float32; class weights [n, num_classes] stay as they are."""
    return y if y.is_floating_point() else F.one_hot(y, num_classes).float()


def attention_layers(places: Iterable[tuple[int, int]], config: "ModelConfig", sn: float | None) -> nn.ModuleDict:
    """(index of the block that it follows, channels) -> SelfAttention, by index."""
    return nn.ModuleDict({str(i): SelfAttention(width, sn, config.attention == "scaled") for i, width in places})


class Generator(Recomputing):
    """z [n, latent_dim] float32, y [n] int64 -> images [n, channels, r, r] float32 in -1..1.

    y may also be class weights [n, num_classes] float32: what a mixture of classes embeds is the mixture of their embeddings.
    """

    def __init__(self, config: "ModelConfig"):
        super().__init__()
        self.config = config
        self.deep = config.g_entry.bottlenecks
        widths, eps = config.g_channels, config.bn_eps
        sn = config.sn_eps if config.g_spectral else None
        embedded = (config.shared_dim or config.num_classes) if config.conditional else 0
        chunk = config.latent_dim // config.latent_slots
        condition = embedded + (chunk if config.latent_slots > 1 or self.deep else 0)
        # Gains and biases by class are a table, as BigGAN-PyTorch and SAGAN have it: only shared ones are normalised.
        norm_sn = sn if config.shared_dim else None
        if config.conditional and config.shared_dim:
            self.shared = nn.Embedding(config.num_classes, config.shared_dim)
            nn.init.orthogonal_(self.shared.weight)
        self.seed = SNLinear(condition if self.deep else chunk, widths[0] * 16, sn)
        self.blocks = nn.ModuleList()
        for inputs, outputs in pairwise(widths):
            if self.deep:
                self.blocks.append(DeepGBlock(inputs, inputs, condition, eps, sn, norm_sn, upsample=False))
                self.blocks.append(DeepGBlock(inputs, outputs, condition, eps, sn, norm_sn, upsample=True))
            else:
                self.blocks.append(GBlock(inputs, outputs, condition, eps, sn, norm_sn))
        last = [2 * i + 1 if self.deep else i for i in range(len(widths) - 1)]
        places = zip(last, widths[1:], config.g_sizes, strict=True)
        self.attention = attention_layers(((i, w) for i, w, size in places if size in config.g_attention_at), config, sn)
        self.output_bn = AffineBatchNorm(widths[-1], eps if config.output_bn_eps is None else config.output_bn_eps)
        self.output = SNConv2d(widths[-1], config.output_width or config.channels, 3, sn)

    def embed(self, y: Tensor) -> Tensor:
        """What batch norm is conditioned on besides z: [n, shared_dim], unshared [n, num_classes], without classes [n, 0]."""
        if not self.config.conditional:
            return torch.empty(y.shape[0], 0, device=y.device)
        if not self.config.shared_dim:
            return class_weights(y, self.config.num_classes)
        return y @ self.shared.weight if y.is_floating_point() else self.shared(y)

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        embedded, chunks = self.embed(y).to(z.dtype), z.chunk(self.config.latent_slots, 1)
        if self.deep:
            whole = torch.cat((embedded, z), 1)
            first, conditions = whole, [whole] * len(self.blocks)
        elif len(chunks) > 1:
            first, conditions = chunks[0], [torch.cat((embedded, chunk), 1) for chunk in chunks[1:]]
        else:
            first, conditions = z, [embedded] * len(self.blocks)
        h = self.seed(first).unflatten(1, (-1, 4, 4)).contiguous(memory_format=torch.channels_last)
        for i, block in enumerate(self.blocks):
            h = self.run(block, h, conditions[i])
            if str(i) in self.attention:
                h = self.attention[str(i)](h)
        image = self.output(F.relu(self.output_bn(h), inplace=True))[:, : self.config.channels]
        return (image if image.dtype == torch.float64 else image.float()).tanh()


class Discriminator(Recomputing):
    """Images x [n, channels, r, r] in -1..1, y [n] int64 -> logits [n] float32."""

    def __init__(self, config: "ModelConfig"):
        super().__init__()
        self.config = config
        self.deep = config.d_entry.bottlenecks
        sn = config.sn_eps if config.d_spectral else None
        widths = [d_inputs(config), *config.d_channels]
        if self.deep:
            self.input = SNConv2d(widths[0], widths[1], 3, sn)
            widths = widths[1:]
        self.blocks = nn.ModuleList()
        for i, (inputs, outputs) in enumerate(pairwise(widths)):
            halve = i < config.d_keep
            if self.deep:
                self.blocks.append(DeepDBlock(inputs, outputs, sn, halve, config.d_relu_shortcut))
                self.blocks.append(DeepDBlock(outputs, outputs, sn, False, config.d_relu_shortcut))
            else:
                self.blocks.append(DBlock(inputs, outputs, sn, i > 0, halve, config.d_relu_shortcut))
        last = [2 * i + 1 if self.deep else i for i in range(config.d_keep)]
        places = zip(last, widths[1 : config.d_keep + 1], config.d_sizes, strict=True)
        self.attention = attention_layers(((i, w) for i, w, size in places if size in config.d_attention_at), config, sn)
        self.linear = SNLinear(widths[-1], 1, sn)
        if projects(config):
            self.embed = SNEmbedding(config.num_classes, widths[-1], sn)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        h = with_maps(x, y, self.config).contiguous(memory_format=torch.channels_last)
        if self.deep:
            h = self.input(h)
        for i, block in enumerate(self.blocks):
            h = self.run(block, h)
            if str(i) in self.attention:
                h = self.attention[str(i)](h)
        # bf16 holds 8 bits of a logit: the head stays in fp32.
        with torch.autocast(x.device.type, enabled=False):
            features = F.relu(h).to(x.dtype).sum((2, 3))
            logits = self.linear(features)[:, 0]
            return logits + (self.embed(y) * features).sum(1) if projects(self.config) else logits


def projects(config: "ModelConfig") -> bool:
    """Whether D multiplies its features with an embedding of the class (arXiv 1802.05637)."""
    return config.conditional and config.d_condition == "projection"


def d_inputs(config: "ModelConfig") -> int:
    """Channels that D's first layer sees."""
    concatenated = config.conditional and config.d_condition == "concat"
    return config.channels + (config.num_classes if concatenated else 0)


def with_maps(x: Tensor, y: Tensor, config: "ModelConfig") -> Tensor:
    """x [n, C, h, w], with one map for each class behind it if D is conditioned by concatenation."""
    if d_inputs(config) == config.channels:
        return x
    maps = class_weights(y, config.num_classes).to(x.dtype)[:, :, None, None]
    return torch.cat((x, maps.expand(-1, -1, *x.shape[2:])), 1)
