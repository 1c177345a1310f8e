"""From a run to its generator: EMA weights, standing statistics, images."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from model.batchnorm import standing_statistics
from model.biggan import Generator, ModelConfig
from model.latents import Stream, latents, random_labels
from model.spectral import power_iteration
from pipeline import checkpoint as checkpoints
from pipeline.errors import ConfigError
from pipeline.index import load_manifest
from pipeline.run import checkpoint_uri, load_run_config

STANDING_BATCHES, STANDING_SAMPLES = 16, 256
"""BigGAN's appendix E pools standing statistics over many batches; these 4,096 samples are as in BigGAN-PyTorch."""


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
    batches: int = STANDING_BATCHES,
    samples: int = STANDING_SAMPLES,
) -> Generator:
    """G with averaged parameters, sigma converged on them, and standing statistics: always the same for the same weights."""
    generator = Generator(config)
    generator.load_state_dict(tensors | averages)
    power_iteration(generator, 10)
    standing_statistics(
        generator,
        (
            (
                latents(0, Stream.STANDING, i * samples, samples, config.z_dim),
                random_labels(0, Stream.STANDING, i * samples, samples, config.num_classes),
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
    generator = ema_generator(config.model, found.tensors("generator"), found.tensors("ema"))
    digest = hashlib.sha256(safetensors.torch.save(dict(generator.state_dict()))).hexdigest()
    classes = load_manifest(config.data.uri).classes
    return TrainedGenerator(generator, config.model, found.images, Path(run_dir), classes, digest)


@torch.no_grad()
def generate(generator: Generator, labels: Tensor, *, seed: int, truncation: float | None = None, batch: int = 256) -> Tensor:
    """Images uint8 [n, C, r, r] of `labels` [n] int64; sample i depends on seed, i and its label only, not on `batch`."""
    device = next(generator.parameters()).device
    parts = []
    for start in range(0, len(labels), batch):
        y = labels[start : start + batch]
        z = latents(seed, Stream.SAMPLES, start, len(y), generator.z_dim, truncation)
        parts.append(to_pixels(generator(z.to(device), y.to(device))).cpu())
    return torch.cat(parts)


def to_pixels(x: Tensor) -> Tensor:
    """-1..1 -> uint8 0..255."""
    return ((x + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def grid(images: Tensor, columns: int) -> Tensor:
    """Tile uint8 [n, C, r, r] row by row into [H, W, C]; n must be a multiple of `columns`."""
    n, c, r, _ = images.shape
    tiled = images.reshape(n // columns, columns, c, r, r).permute(0, 3, 1, 4, 2)
    return tiled.reshape(n // columns * r, columns * r, c)
