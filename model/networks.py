"""The registry of architectures: by name, how a network is built and all that the rest of the house asks about it.

A new architecture is a file with its network and an entry here.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from . import biggan, dcgan
from .sizes import SIZES

if TYPE_CHECKING:
    from .config import ModelConfig

Generator = biggan.Generator | dcgan.TransposedGenerator
Discriminator = biggan.Discriminator | dcgan.StridedDiscriminator
ByResolution = Callable[[int], tuple[int, ...]]


@dataclass(frozen=True, kw_only=True)
class GeneratorEntry:
    """What a generator is and what it can do."""

    build: Callable[["ModelConfig"], Generator]
    widths: ByResolution
    """Widths from the 4 x 4 seed to the last stage where none are given, in multiples of ch."""
    attention: ByResolution
    """Resolutions that self-attention follows where none are given."""
    splits_z: bool = False
    """With hierarchical=true, z has a part for the seed and one for each block."""
    whole_z: bool = False
    """Every block gets all of z and the shared embedding: shared_dim and hierarchical are needed."""
    bottlenecks: bool = False
    """Blocks of a quarter of the width, whose shortcut drops channels."""
    compiles: bool = True
    zero3: bool = True
    onnx: bool = True


@dataclass(frozen=True, kw_only=True)
class DiscriminatorEntry:
    """What a discriminator is and what it can do."""

    build: Callable[["ModelConfig"], Discriminator]
    widths: ByResolution
    """Widths of its stages where none are given, in multiples of ch."""
    attention: ByResolution
    """Resolutions that self-attention follows where none are given."""
    stem: bool = False
    """The first width is that of a layer before the stages."""
    bottlenecks: bool = False
    """Blocks of a quarter of the width, whose shortcut adds channels."""
    halves_all: bool = False
    """Every stage halves the image; else d_halvings of them do."""
    compiles: bool = True
    zero3: bool = True
    r1: bool = True
    """Each image's gradient is its own: no batch norm."""


def _paper_attention(resolution: int) -> tuple[int, ...]:
    return SIZES[resolution].g_attention


def _no_attention(resolution: int) -> tuple[int, ...]:
    return ()


GENERATORS = {
    "biggan": GeneratorEntry(
        build=biggan.Generator,
        widths=lambda resolution: SIZES[resolution].g_widths,
        attention=_paper_attention,
        splits_z=True,
    ),
    "biggan-deep": GeneratorEntry(
        build=biggan.Generator,
        widths=lambda resolution: SIZES[resolution].g_widths,
        # Also at 256 px, where BigGAN has 128.
        attention=lambda resolution: (64,) if _paper_attention(resolution) else (),
        whole_z=True,
        bottlenecks=True,
    ),
    "transposed": GeneratorEntry(
        build=dcgan.TransposedGenerator,
        widths=lambda resolution: tuple(max(8 >> i, 1) for i in range(len(SIZES[resolution].g_widths))),
        attention=_no_attention,
    ),
}

DISCRIMINATORS = {
    "biggan": DiscriminatorEntry(
        build=biggan.Discriminator,
        widths=lambda resolution: SIZES[resolution].d_widths,
        attention=lambda resolution: SIZES[resolution].d_attention,
    ),
    "biggan-deep": DiscriminatorEntry(
        build=biggan.Discriminator,
        widths=lambda resolution: SIZES[resolution].d_widths,
        attention=lambda resolution: SIZES[resolution].d_attention,
        stem=True,
        bottlenecks=True,
    ),
    "strided": DiscriminatorEntry(
        build=dcgan.StridedDiscriminator,
        widths=lambda resolution: tuple(min(1 << i, 8) for i in range(resolution.bit_length() - 3)),
        attention=_no_attention,
        halves_all=True,
        compiles=False,
        r1=False,
    ),
}


def build_generator(config: "ModelConfig") -> Generator:
    """Return the generator that `config` names, with new weights."""
    return GENERATORS[config.generator].build(config)


def build_discriminator(config: "ModelConfig") -> Discriminator:
    """Return the discriminator that `config` names, with new weights."""
    return DISCRIMINATORS[config.discriminator].build(config)
