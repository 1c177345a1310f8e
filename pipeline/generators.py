"""From a run to its generator: EMA weights, standing statistics, images."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from model.batchnorm import standing_statistics
from model.config import ModelConfig
from model.latents import Stream, latents, random_labels
from model.networks import Generator, build_generator
from model.spectral import power_iteration
from pipeline import checkpoint as checkpoints
from pipeline.errors import ConfigError
from pipeline.index import load_manifest
from pipeline.run import checkpoint_uri, load_run_config

STANDING_BATCHES, STANDING_SAMPLES = 16, 128
"""Standing statistics pool many batches (BigGAN, appendix E); 16 passes as in BigGAN-PyTorch."""


@dataclass(frozen=True)
class TrainedGenerator:
    """A finished generator and where it came from."""

    generator: Generator
    """EMA weights, eval mode, standing statistics of untruncated latents."""
    config: ModelConfig
    images: int
    """Real images that D had seen."""
    run_dir: Path
    classes: tuple[str, ...]
    weights_sha256: str


def ema_generator(
    config: ModelConfig,
    tensors: dict[str, Tensor],
    averages: dict[str, Tensor],
    device: torch.device,
    batches: int = STANDING_BATCHES,
    samples: int = STANDING_SAMPLES,
) -> Generator:
    """G with averaged parameters, sigma converged on them, and standing statistics: always the same for the same weights."""
    generator = build_generator(config).to(device)
    generator.load_state_dict(tensors | averages)
    power_iteration(generator, 10)
    standing_statistics(
        generator,
        (
            (
                latents(0, Stream.STANDING, i * samples, samples, config.latent_dim).to(device),
                random_labels(0, Stream.STANDING, i * samples, samples, config.num_classes).to(device),
            )
            for i in range(batches)
        ),
    )
    return generator


def load_run_generator(run_dir: str | Path, checkpoint: str | None = None) -> TrainedGenerator:
    """The EMA generator of a run's newest checkpoint, or of that at `checkpoint` images.

    Raises ConfigError if there is no such run or checkpoint, DataError if the checkpoint is damaged.
    """
    config = load_run_config(run_dir)
    uri = checkpoint_uri(config)
    if checkpoint is None:
        found = checkpoints.newest(uri)
    else:
        found = next((c for c in checkpoints.committed(uri) if c.images == int(checkpoint)), None)
    if found is None:
        have = ", ".join(str(c.images) for c in checkpoints.committed(uri)) or "none"
        raise ConfigError(f"{run_dir} has no checkpoint{f' at {checkpoint} images' if checkpoint else ''}; it has: {have}")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    generator = ema_generator(config.model, found.tensors("generator"), found.tensors("ema"), device)
    digest = hashlib.sha256(safetensors.torch.save(dict(generator.state_dict()))).hexdigest()
    classes = load_manifest(config.data.uri).classes
    return TrainedGenerator(generator, config.model, found.images, Path(run_dir), classes, digest)
