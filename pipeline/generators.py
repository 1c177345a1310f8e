"""From a checkpoint to its generator: EMA weights, statistics for batch norm, images."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch

from model.batchnorm import BatchNorm, standing_statistics
from model.config import ModelConfig
from model.latents import Stream, Truncation, latents, random_labels
from model.networks import Generator, build_generator
from model.spectral import power_iteration
from pipeline.checkpoint import Tensors
from pipeline.index import load_manifest
from pipeline.run import load_run_config, locate

STANDING_BATCHES, STANDING_SAMPLES = 16, 128
"""Standing statistics pool many batches (BigGAN, appendix E); 16 passes as in BigGAN-PyTorch."""


@dataclass(frozen=True)
class TrainedGenerator:
    """A finished generator and where it came from."""

    generator: Generator
    """EMA weights, eval mode, statistics of the latents that were asked for."""
    config: ModelConfig
    images: int
    """Real images that D had seen."""
    run_dir: Path
    classes: tuple[str, ...]
    weights_sha256: str
    named: bool = True
    """Whether the classes' names are known; else they are numbers."""


def ema_generator(
    config: ModelConfig,
    tensors: Tensors,
    averages: Tensors,
    device: torch.device,
    batches: int = STANDING_BATCHES,
    samples: int = STANDING_SAMPLES,
    truncation: float | None = None,
    method: Truncation = "truncated-normal",
) -> Generator:
    """G with averaged parameters, sigma converged on them, and standing statistics: always the same for the same weights.

    The statistics are those of latents truncated at `truncation`, since activations depend on it (BigGAN, appendix E).
    """
    generator = build_generator(config).to(device)
    generator.load_state_dict(tensors | averages)
    power_iteration(generator, 10)
    standing_statistics(
        generator,
        (
            (
                latents(0, Stream.STANDING, i * samples, samples, config.latent_dim, truncation, method).to(device),
                random_labels(0, Stream.STANDING, i * samples, samples, config.num_classes).to(device),
            )
            for i in range(batches)
        ),
    )
    return generator


def recorded_generator(
    config: ModelConfig, tensors: Tensors, recorded: Tensors, device: torch.device, truncation: float | None = None
) -> Generator:
    """G as somebody else trained it: its own u and v, and batch-norm statistics that were recorded with the weights.

    `recorded` has `truncations` [K], ascending, and NAME.mean and NAME.var [K, C] for each batch norm: those of the nearest
    truncations are mixed linearly. Beyond the last, and without truncation, the last one counts.
    """
    generator = build_generator(config).to(device)
    generator.load_state_dict(tensors)
    places = recorded["truncations"]
    wanted = places[-1] if truncation is None else places.new_tensor(truncation).clamp(places[0], places[-1])
    high = int(torch.searchsorted(places, wanted).clamp(max=len(places) - 1))
    low = max(high - 1, 0)
    share = 1.0 if low == high else float((wanted - places[low]) / (places[high] - places[low]))
    for name, layer in generator.named_modules():
        if isinstance(layer, BatchNorm):
            for key in ("mean", "var"):
                table = recorded[f"{name}.{key}"]
                getattr(layer, key).copy_(table[high] if share == 1.0 else torch.lerp(table[low], table[high], share))
    return generator.eval()


def load_generator(
    source: str,
    images: int | None = None,
    truncation: float | None = None,
    method: Truncation = "truncated-normal",
    standing: bool = False,
) -> TrainedGenerator:
    """The EMA generator of a run, of a folder of checkpoints or of one checkpoint; the newest, or that at `images` images.

    Its batch norm is ready for latents truncated at `truncation`: from statistics that came with imported weights, unless
    `standing` asks to compute them anew, as it is done for weights of ours. Raises ConfigError if there is no such
    checkpoint, DataError if it is damaged.
    """
    found = locate(source, images)
    state = found.state()
    run_config = load_run_config(source) if Path(source, "config.yaml").is_file() else None
    config = run_config.model if run_config else ModelConfig(**state["model"])
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tensors, averages = found.tensors("generator"), found.tensors("ema")
    if "statistics.safetensors" in found.files and not standing:
        vectors = found.tensors("ema_vectors") if "ema_vectors.safetensors" in found.files else {}
        recorded = found.tensors("statistics")
        generator = recorded_generator(config, tensors | averages | vectors, recorded, device, truncation)
    else:
        generator = ema_generator(config, tensors, averages, device, truncation=truncation, method=method)
    digest = hashlib.sha256(safetensors.torch.save(dict(generator.state_dict()))).hexdigest()
    names = load_manifest(run_config.data.uri).classes if run_config else state["classes"]
    classes = tuple(names) if names else tuple(map(str, range(config.num_classes)))
    return TrainedGenerator(generator, config, found.images, Path(source), classes, digest, names is not None)


def load_run_generator(run_dir: str | Path, checkpoint: str | None = None) -> TrainedGenerator:
    """The EMA generator of a run's newest checkpoint, or of that at `checkpoint` images, for latents that are not truncated.

    Raises ConfigError if there is no such run or checkpoint, DataError if the checkpoint is damaged.
    """
    load_run_config(run_dir)
    return load_generator(str(run_dir), None if checkpoint is None else int(checkpoint))
