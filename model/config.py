"""What the networks are made of: the configuration that builds a network around weights.

`model.networks` lists the architectures, `model.sizes` the published sizes.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal

from .networks import DISCRIMINATORS, GENERATORS, DiscriminatorEntry, GeneratorEntry
from .sizes import SIZES, UNSPLIT_Z


@dataclass(frozen=True)
class ModelConfig:
    """What a generator and its discriminator are made of; enough to rebuild them around saved weights."""

    resolution: int
    """Height and width of the images in pixels: 32, 64, 128, 256 or 512."""
    num_classes: int
    """Number of classes; must be that of the shards. 1: unconditional."""
    channels: int = 3
    """Image channels: 3 for colour, 1 for greyscale; must be that of the shards."""
    generator: Literal[*GENERATORS] = "biggan"  # type: ignore[valid-type]
    """transposed: label concatenated to z, transposed convolutions, plain batch norm."""
    discriminator: Literal[*DISCRIMINATORS] = "biggan"  # type: ignore[valid-type]
    """strided: strided convolutions with batch norm and a linear head."""
    ch: int = 96
    """Width multiplier of both networks (paper: 96; BigGAN-deep 128)."""
    d_ch: int | None = None
    """Width multiplier of D where it is another."""
    max_channels: int | None = None
    """No layer is wider than this. Default: no limit."""
    shared_dim: int = 128
    """Size of the class embedding that all conditional batch norms share; 0: each learns its own gain and bias by class."""
    z_dim: int | None = None
    """Latent values. Default: the paper's for the resolution; 128 where z is not split."""
    hierarchical: bool = True
    """BigGAN's G splits z: a part for the seed, one for each block. BigGAN-deep gives all of z to every block instead."""
    g_attention: tuple[int, ...] | None = None
    """Resolutions in G that self-attention follows. Default: the paper's; none for transposed."""
    d_attention: tuple[int, ...] | None = None
    """Resolutions in D that self-attention follows. Default: the paper's; none for strided."""
    attention: Literal["biggan", "scaled"] = "biggan"
    """biggan: keys and values max-pooled, no scaling; scaled: softmax(Q K^T / sqrt(d_k)) V over all positions."""
    d_condition: Literal["projection", "concat"] = "projection"
    """How D sees the class: projection (arXiv 1802.05637), or one-hot maps concatenated to the image."""
    g_widths: tuple[int, ...] | None = None
    """G's widths from the 4 x 4 seed to the last stage, in multiples of ch. Default: the resolution's row."""
    d_widths: tuple[int, ...] | None = None
    """Widths of D's stages in multiples of ch; BigGAN's last one keeps its size. Default: the resolution's row."""
    d_halvings: int | None = None
    """How many of D's first stages halve the image. Default: all but the last; 2 at 32 px where all widths are equal."""
    g_spectral: bool = True
    """Spectral normalisation of G's convolutions and linear layers."""
    d_spectral: bool = True
    """The same for D."""
    d_relu_shortcut: bool = False
    """D's shortcuts begin behind the block's first ReLU, as StudioGAN's ReLU in place has it; for weights from there."""
    bn_eps: float = 1e-4
    """Added to the variance in batch norm (the paper's value)."""
    output_bn_eps: float | None = None
    """The same for G's last batch norm, where weights from elsewhere need another."""
    sn_eps: float = 1e-4
    """Floor of the norms in power iteration (the paper's value)."""
    output_width: int | None = None
    """Outputs of G's last convolution, of which the first `channels` are the image; TF-Hub's BigGAN-deep has 128."""

    def __post_init__(self) -> None:
        if self.resolution not in SIZES:
            nearest = min(SIZES, key=lambda r: abs(r - self.resolution))
            sizes = ", ".join(map(str, SIZES))
            raise ValueError(f"resolution={self.resolution}: must be one of {sizes}; the nearest is {nearest}")
        for name in ("num_classes", "channels", "ch", "d_ch", "max_channels", "z_dim"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name}={value}: must be at least 1")
        if self.shared_dim < 0:
            raise ValueError(f"shared_dim={self.shared_dim}: must be at least 1, or 0 for no shared embedding")
        if self.g_entry.whole_z and not (self.shared_dim and self.hierarchical):
            raise ValueError(f"generator={self.generator}: needs shared_dim of at least 1 and hierarchical=true")
        if self.output_width is not None and self.output_width < self.channels:
            raise ValueError(f"output_width={self.output_width}: must be at least channels={self.channels}")
        self._check_widths()
        if self.d_halvings is not None and (self.d_entry.halves_all or not 1 <= self.d_halvings <= len(self.d_row)):
            raise ValueError(f"d_halvings={self.d_halvings}: must be 1 to {len(self.d_row)}, and none for a strided D")
        self._check_latents()
        for name in ("g_attention", "d_attention"):
            self._check_attention(name)

    def _check_widths(self) -> None:
        for name, default in (("g_widths", self.g_row), ("d_widths", self.d_row)):
            widths = getattr(self, name)
            if widths is not None and (len(widths) != len(default) or min(widths) < 1):
                raise ValueError(f"{name}={list(widths)}: must be {len(default)} numbers of at least 1 at {self.resolution} px")
        for name, entry, widths in (
            (f"generator={self.generator}", self.g_entry, self.g_channels),
            (f"discriminator={self.discriminator}", self.d_entry, self.d_channels),
        ):
            if entry.bottlenecks:
                if min(widths) < 4:
                    raise ValueError(f"ch={self.ch}: {name} needs widths of at least 4, for its bottlenecks of a quarter")
                steps = list(pairwise(widths))
                if name[0] == "g" and any(a < b for a, b in steps):
                    raise ValueError(f"g_widths={list(widths)}: {name} drops channels on its shortcut, so they cannot grow")
                if name[0] == "d" and any(a > b for a, b in steps):
                    raise ValueError(f"d_widths={list(widths)}: {name} adds channels on its shortcut, so they cannot shrink")

    def _check_latents(self) -> None:
        slots, z = self.latent_slots, self.latent_dim
        if z % slots:
            low, high = z - z % slots, z - z % slots + slots
            nearest = " or ".join(f"model.z_dim={value}" for value in (low, high) if value)
            raise ValueError(f"z_dim={z}: must split into {slots} equal parts at {self.resolution} px: set {nearest}")

    def _check_attention(self, name: str) -> None:
        sizes = self.g_sizes if name[0] == "g" else self.d_sizes
        first = name[0] == "g" or self.d_entry.stem  # the width of what comes before the stages
        widths = (self.g_channels if name[0] == "g" else self.d_channels)[first:]
        for size in getattr(self, f"{name}_at"):
            if size not in sizes:
                nearest = min(sizes, key=lambda s: abs(s - size))
                raise ValueError(f"{name}={size}: no such size in {name[0].upper()}; it has {sizes}, the nearest is {nearest}")
            if (width := widths[sizes.index(size)]) < 8:
                raise ValueError(f"{name}={size}: attention needs a width of at least 8, and ch={self.ch} makes it {width}")

    @property
    def g_entry(self) -> GeneratorEntry:
        """G's entry in the registry."""
        return GENERATORS[self.generator]

    @property
    def d_entry(self) -> DiscriminatorEntry:
        """D's entry in the registry."""
        return DISCRIMINATORS[self.discriminator]

    @property
    def g_row(self) -> tuple[int, ...]:
        """G's widths where none are given."""
        return self.g_entry.widths(self.resolution)

    @property
    def d_row(self) -> tuple[int, ...]:
        """D's widths where none are given."""
        return self.d_entry.widths(self.resolution)

    def _channels(self, widths: tuple[int, ...], ch: int) -> list[int]:
        return [min(ch * width, self.max_channels or ch * width) for width in widths]

    @property
    def conditional(self) -> bool:
        return self.num_classes > 1

    @property
    def g_channels(self) -> list[int]:
        """G's channels: of the seed, then of each stage."""
        return self._channels(self.g_widths or self.g_row, self.ch)

    @property
    def d_channels(self) -> list[int]:
        """D's channels by block or stage; BigGAN-deep's begin with the stem."""
        return self._channels(self.d_widths or self.d_row, self.d_ch or self.ch)

    @property
    def d_keep(self) -> int:
        """D's stages from this one on keep their size."""
        if self.d_entry.halves_all:
            return len(self.d_channels)
        if self.d_halvings is not None:
            return self.d_halvings
        row, widths = self.d_row, self.d_widths or self.d_row
        typed_row = all(a * widths[0] == b * row[0] for a, b in zip(row, widths, strict=True))  # in any unit
        return SIZES[self.resolution].d_keep if typed_row else len(row) - 1

    @property
    def g_sizes(self) -> list[int]:
        """Height and width after each of G's stages."""
        return [8 << i for i in range(len(self.g_channels) - 1)]

    @property
    def d_sizes(self) -> list[int]:
        """Height and width after each of D's stages that halves it."""
        return [self.resolution >> (i + 1) for i in range(self.d_keep)]

    @property
    def g_attention_at(self) -> tuple[int, ...]:
        if self.g_attention is not None:
            return self.g_attention
        return self.g_entry.attention(self.resolution)

    @property
    def d_attention_at(self) -> tuple[int, ...]:
        if self.d_attention is not None:
            return self.d_attention
        return self.d_entry.attention(self.resolution)

    @property
    def latent_slots(self) -> int:
        """Parts of z: one for the seed and one for each block where z is split, else 1."""
        return len(self.g_channels) if self.g_entry.splits_z and self.hierarchical else 1

    @property
    def latent_dim(self) -> int:
        """Length of z."""
        if self.z_dim is not None:
            return self.z_dim
        return SIZES[self.resolution].z_dim if self.latent_slots > 1 else UNSPLIT_Z


def from_saved(fields: Mapping[str, Any]) -> ModelConfig:
    """Return the configuration that this version or an earlier one saved in JSON or YAML, for the same networks.

    Before there was `d_halvings`, a D whose widths were typed halved in all stages but the last, even if they were the row's.
    """
    found: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()}
    config = ModelConfig(**found)
    if "d_halvings" in found or config.d_widths is None or config.d_entry.halves_all:
        return config
    before = len(config.d_widths) - 1
    return config if config.d_keep == before else replace(config, d_halvings=before)
