"""BigGAN: class-conditional generator and projection discriminator (arXiv 1809.11096, appendix B).

One row of `ARCHITECTURES` per resolution holds all that differs between them. The parameter counts of the published
models are tests (tests/model/test_biggan.py).
"""

from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .layers import AffineBatchNorm, DBlock, GBlock, SelfAttention
from .spectral import SNConv2d, SNEmbedding, SNLinear


@dataclass(frozen=True)
class Architecture:
    """Widths are multiples of `ch`. G's first width is that of the 4 x 4 seed; D's blocks from `d_keep` on keep their size."""

    g_widths: tuple[int, ...]
    d_widths: tuple[int, ...]
    d_keep: int
    z_chunk: int
    attention: tuple[int, ...]


ARCHITECTURES = {
    32: Architecture((4, 4, 4, 4), (4, 4, 4, 4), d_keep=2, z_chunk=20, attention=()),
    64: Architecture((16, 16, 8, 4, 2), (1, 2, 4, 8, 16), d_keep=4, z_chunk=24, attention=(64,)),
    128: Architecture((16, 16, 8, 4, 2, 1), (1, 2, 4, 8, 16, 16), d_keep=5, z_chunk=20, attention=(64,)),
}


@dataclass(frozen=True)
class ModelConfig:
    """What a generator and its discriminator are made of; enough to rebuild them around saved weights."""

    resolution: int
    """Height and width of the images in pixels: 32, 64 or 128."""
    num_classes: int
    """Number of classes; must be that of the shards."""
    channels: int = 3
    """Image channels: 3 for colour, 1 for greyscale; must be that of the shards."""
    ch: int = 96
    """Width multiplier of both networks (paper: 96)."""
    shared_dim: int = 128
    """Size of the class embedding that all conditional batch norms share."""
    z_chunk: int | None = None
    """Latent values per slot; there is one slot for the seed and one for each block. Default: the resolution's row."""
    attention: tuple[int, ...] | None = None
    """Resolutions that are followed by self-attention. Default: the resolution's row."""
    g_widths: tuple[int, ...] | None = None
    """G's widths from the 4 x 4 seed to the last block, in multiples of ch. Default: the resolution's row."""
    d_widths: tuple[int, ...] | None = None
    """Widths of D's blocks in multiples of ch; all but the last halve the size. Default: the resolution's row."""
    bn_eps: float = 1e-4
    """Added to the variance in batch norm (the paper's value)."""
    sn_eps: float = 1e-4
    """Floor of the norms in power iteration (the paper's value)."""

    def __post_init__(self) -> None:
        if self.resolution not in ARCHITECTURES:
            raise ValueError(f"resolution={self.resolution}: must be one of {', '.join(map(str, ARCHITECTURES))}")
        for name in ("num_classes", "channels", "ch", "shared_dim"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least 1")
        blocks = self.resolution.bit_length() - 3  # each doubles the size, from 4
        for name in ("g_widths", "d_widths"):
            widths = getattr(self, name)
            if widths is not None and (len(widths) != blocks + 1 or min(widths) < 1):
                raise ValueError(f"{name}={list(widths)}: must be {blocks + 1} numbers of at least 1 at {self.resolution} px")
        sizes = [8 << i for i in range(blocks)]
        if wrong := [r for r in self.attention or () if r not in sizes]:
            raise ValueError(f"attention={wrong}: must be among G's block resolutions {sizes}")
        if self.attention_at and self.ch % 8:
            raise ValueError(f"ch={self.ch}: must be a multiple of 8 where attention is used")

    @property
    def architecture(self) -> Architecture:
        row = ARCHITECTURES[self.resolution]
        if self.g_widths is not None:
            row = replace(row, g_widths=self.g_widths)
        if self.d_widths is not None:
            row = replace(row, d_widths=self.d_widths, d_keep=len(self.d_widths) - 1)
        return row

    @property
    def attention_at(self) -> tuple[int, ...]:
        return self.architecture.attention if self.attention is None else self.attention

    @property
    def chunk(self) -> int:
        return self.architecture.z_chunk if self.z_chunk is None else self.z_chunk

    @property
    def z_dim(self) -> int:
        return self.chunk * len(self.architecture.g_widths)


class Generator(nn.Module):
    """z [n, z_dim] float32, y [n] int64 -> images [n, channels, r, r] float32 in -1..1."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config, self.z_dim = config, config.z_dim
        widths = [config.ch * m for m in config.architecture.g_widths]
        condition = config.shared_dim + config.chunk
        bn, sn = config.bn_eps, config.sn_eps
        self.shared = nn.Embedding(config.num_classes, config.shared_dim)
        nn.init.orthogonal_(self.shared.weight)
        self.seed = SNLinear(config.chunk, widths[0] * 16, sn)
        self.blocks = nn.ModuleList(GBlock(i, o, condition, bn, sn) for i, o in pairwise(widths))
        self.attention = nn.ModuleDict(
            {str(i): SelfAttention(w, sn) for i, w in enumerate(widths[1:]) if 8 << i in config.attention_at}
        )
        self.output_bn = AffineBatchNorm(widths[-1], bn)
        self.output = SNConv2d(widths[-1], config.channels, 3, sn)

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        chunks = z.split(self.config.chunk, 1)
        embedded = self.shared(y)
        h = self.seed(chunks[0]).unflatten(1, (-1, 4, 4)).contiguous(memory_format=torch.channels_last)
        for i, block in enumerate(self.blocks):
            h = block(h, torch.cat((embedded, chunks[i + 1]), 1))
            if str(i) in self.attention:
                h = self.attention[str(i)](h)
        return self.output(F.relu(self.output_bn(h))).float().tanh()


class Discriminator(nn.Module):
    """Images x [n, channels, r, r] in -1..1, y [n] int64 -> logits [n] float32, with class projection (arXiv 1802.05637)."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        arch, sn = config.architecture, config.sn_eps
        widths = [config.channels] + [config.ch * m for m in arch.d_widths]
        self.blocks = nn.ModuleList(
            DBlock(a, b, sn, preactivation=i > 0, downsample=i < arch.d_keep) for i, (a, b) in enumerate(pairwise(widths))
        )
        sizes = [config.resolution >> min(i + 1, arch.d_keep) for i in range(len(arch.d_widths))]
        self.attention = nn.ModuleDict(
            {
                str(i): SelfAttention(widths[i + 1], sn)
                for i, size in enumerate(sizes)
                if size in config.attention_at and i < arch.d_keep
            }
        )
        self.linear = SNLinear(widths[-1], 1, sn)
        self.embed = SNEmbedding(config.num_classes, widths[-1], sn)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        h = x.contiguous(memory_format=torch.channels_last)
        for i, block in enumerate(self.blocks):
            h = block(h)
            if str(i) in self.attention:
                h = self.attention[str(i)](h)
        # bf16 holds 8 bits of a logit: the head stays in fp32.
        with torch.autocast(x.device.type, enabled=False):
            features = F.relu(h).float().sum((2, 3))
            return self.linear(features)[:, 0] + (self.embed(y) * features).sum(1)
