"""The networks that a configuration names."""

from . import biggan, dcgan
from .config import ModelConfig

Generator = biggan.Generator | dcgan.TransposedGenerator
Discriminator = biggan.Discriminator | dcgan.StridedDiscriminator


def build_generator(config: ModelConfig) -> Generator:
    return dcgan.TransposedGenerator(config) if config.generator == "transposed" else biggan.Generator(config)


def build_discriminator(config: ModelConfig) -> Discriminator:
    return dcgan.StridedDiscriminator(config) if config.discriminator == "strided" else biggan.Discriminator(config)
