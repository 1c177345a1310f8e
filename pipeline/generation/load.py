"""Generators that can draw: from a run, a checkpoint or an exported model to EMA weights with fitting batch-norm statistics."""

import hashlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import safetensors.torch
import torch

from model.batchnorm import standing_statistics
from model.config import ModelConfig
from model.latents import RandomStream, Truncation, latents, random_labels
from model.networks import Generator, build_generator
from model.sampling import full_precision
from model.spectral import power_iteration
from pipeline import storage
from pipeline.checkpoint.finite_weights import not_finite
from pipeline.checkpoint.format import COMMIT, FOLDER, Tensors
from pipeline.checkpoint.saved_network import build_fitting, saved_model
from pipeline.data.dataset import load_data
from pipeline.errors import ConfigError, DataError
from pipeline.generation.exported_model import EXPORTED, find_exported, read_exported
from pipeline.progress import Tell, progress, silent
from pipeline.runs.run_folder import load_run_config, locate
from pipeline.runs.trusted_places import kept_data
from pipeline.wording import command

STANDING_SAMPLES, _STANDING_BATCH = 2048, 128
"""Standing statistics pool many batches (BigGAN, appendix E); 16 passes as in BigGAN-PyTorch."""


@dataclass(frozen=True, kw_only=True)
class TrainedGenerator:
    """A finished generator and where it came from."""

    generator: Generator
    """EMA weights, eval mode, statistics of the latents that it was loaded for."""
    config: ModelConfig
    images: int
    """Real images that D had seen."""
    classes: tuple[str, ...]
    """Names by label; the labels themselves where an import knows no names."""
    weights_sha256: str
    """Of the weights with these statistics, as safetensors."""
    recorded: Tensors | None
    """`truncations` [K], ascending, and `NAME.mean` and `NAME.var` [K, C] of each batch norm; None: nothing was recorded."""

    named: bool = True
    """Whether the classes' names are known; else they are numbers."""

    @property
    def method(self) -> Truncation:
        """How latents are truncated by default: where statistics of several truncations were recorded, as their source did."""
        rows = 0 if self.recorded is None else len(self.recorded["truncations"])
        return "scaled-truncated-normal" if rows > 1 else "truncated-normal"

    def prepare(self, truncation: float | None = None, method: Truncation | None = None, standing: int | None = None) -> None:
        """Give the generator the batch-norm statistics of these latents, to which they belong (BigGAN, appendix E).

        They are those that were recorded with the weights, or standing ones: of `standing` samples, which has precedence, or
        of 2,048 where nothing was recorded.
        """
        if self.recorded is None or standing is not None:
            samples = standing or STANDING_SAMPLES
            with progress("taking batch-norm statistics", samples, "sample") as tell:
                stand(self.generator, truncation, method or self.method, samples, tell)
        else:
            self.generator.load_state_dict(self.generator.state_dict() | recorded_at(self.recorded, truncation))
            self.generator.eval()


@dataclass(frozen=True, kw_only=True)
class _Saved:
    """What is stored of a generator."""

    config: ModelConfig
    tensors: Tensors
    images: int
    classes: tuple[str, ...] | None
    recorded: Tensors | None = None
    averaged: set[str] | None = None
    """Names of the parameters that are averages; None: all of an exported model."""
    finished: bool = False
    """Whether the vectors of spectral norm are those that the weights are to be used with."""


def ema_generator(
    config: ModelConfig, tensors: Tensors, averages: Tensors, device: torch.device, samples: int | None = None
) -> Generator:
    """G with averaged parameters, sigma converged on them, and standing statistics of untruncated latents."""
    generator = build_generator(config).to(device)
    generator.load_state_dict(tensors | averages)
    power_iteration(generator, 10)
    stand(generator, samples=samples)
    return generator


def stand(
    generator: Generator,
    truncation: float | None = None,
    method: Truncation = "truncated-normal",
    samples: int | None = None,
    tell: Tell = silent,
) -> None:
    """Take standing statistics of these latents (default: 2,048): always the same for the same weights."""
    config, device = generator.config, next(generator.parameters()).device
    samples = samples or STANDING_SAMPLES

    def batches() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for start in range(0, samples, _STANDING_BATCH):
            n = min(_STANDING_BATCH, samples - start)
            z = latents(0, RandomStream.STANDING, start, n, dim=config.latent_dim, truncation=truncation, method=method).to(
                device
            )
            yield z, random_labels(0, RandomStream.STANDING, start, n, config.num_classes).to(device)
            tell(n)  # the generator has taken the batch by now

    with full_precision(device):
        standing_statistics(generator, batches())


def recorded_at(recorded: Tensors, truncation: float | None) -> Tensors:
    """`NAME.mean` and `NAME.var` [C] at `truncation`, on the line between the neighbouring rows of the tables.

    Beyond an end it is the end; without truncation the last. A single row serves every truncation.
    """
    places = recorded["truncations"].tolist()
    last = len(places) - 1
    high = last if truncation is None else min(sum(place < truncation for place in places), last)
    low, share = max(high - 1, 0), 1.0
    if truncation is not None and low < high:
        share = min((truncation - places[low]) / (places[high] - places[low]), 1.0)
    tables = {name: table for name, table in recorded.items() if name != "truncations"}
    return {name: table[high] if share == 1 else table[low].lerp(table[high], share) for name, table in tables.items()}


def load_generator(
    source: str | Path,
    images: int | None = None,
    truncation: float | None = None,
    method: Truncation | None = None,
    standing: int | None = None,
) -> TrainedGenerator:
    """The EMA generator at `source`, on the GPU if there is one, prepared for these latents (see `TrainedGenerator.prepare`).

    `method` is its own by default (`TrainedGenerator.method`).

    `source` is a run's folder, a folder of checkpoints (a path or URI; imported ones too), one such checkpoint, or the folder
    of an exported MLflow model. `images` picks one of several checkpoints; default: the newest intact one. Weights that are NaN
    or infinite are warned of on stderr. Raises ConfigError if none of it is there, DataError if it is damaged.
    """
    source = str(source)
    if source.startswith(("models:/", "runs:/")):
        raise ConfigError(
            f"{source} is in a registry, and this takes a run's folder, a checkpoint or an exported model's folder: "
            f"{command('export', 'models:/NAME@ALIAS', 'DIR', '--tracking-uri', 'URI')} makes one of those"
        )
    exported = find_exported(source)
    if exported and images is not None:
        raise ConfigError(f"--checkpoint {images}: {source} is an exported model and has no checkpoints; leave it out")
    saved = _exported(exported) if exported else _checkpoint(source, images)
    generator = build_fitting(saved.config, saved.tensors, source, "cuda" if torch.cuda.is_available() else "cpu")
    _check_recorded(generator, saved.recorded, source)
    if saved.averaged is not None and (plain := dict(generator.named_parameters()).keys() - saved.averaged):
        raise DataError(f"{source} has no average of {min(plain)}: use another checkpoint")
    if not saved.finished:
        power_iteration(generator, 10)
    names = saved.classes or tuple(map(str, range(saved.config.num_classes)))
    trained = TrainedGenerator(
        generator=generator,
        config=saved.config,
        images=saved.images,
        classes=names,
        weights_sha256="",
        recorded=saved.recorded,
        named=saved.classes is not None,
    )
    if exported and truncation is None and standing is None:
        generator.eval()  # its statistics are those
    else:
        trained.prepare(truncation, method, standing)
    state = generator.state_dict()
    if broken := not_finite(state):
        print(f"biggan: warning: {source} has {broken}: its samples are worthless", file=sys.stderr)
    digest = hashlib.sha256(safetensors.torch.save(dict(state))).hexdigest()
    return replace(trained, weights_sha256=digest)


def _check_recorded(generator: Generator, recorded: Tensors | None, source: str) -> None:
    """Raises DataError unless statistics that were recorded are tables of each batch norm's, a row for each truncation."""
    if recorded is None:
        return
    places, state = recorded.get("truncations", torch.empty(0)), generator.state_dict()
    rows = list(places.shape)
    wanted = {name: rows + list(tensor.shape) for name, tensor in state.items() if name.endswith((".norm.mean", ".norm.var"))}
    found = {name: list(table.shape) for name, table in recorded.items() if name != "truncations"}
    if len(rows) != 1 or not rows[0] or found != wanted or places.isnan().any() or not places.equal(places.sort().values):
        raise DataError(f"{source}: its batch-norm statistics do not fit its network: pass --standing 2048, or import it again")


def parse_truncation(text: str, what: str) -> float | None:
    """A truncation as people type it, for `what`; None for `none`. Raises ConfigError."""
    try:
        value = None if text == "none" else float(text)
    except ValueError:
        value = 0.0
    if value is not None and not 0 < value < float("inf"):
        raise ConfigError(f"{what} {text!r}: must be a number above 0, or none")
    return value


def _exported(folder: str) -> _Saved:
    config, tensors, settings = read_exported(folder)
    return _Saved(config=config, tensors=tensors, images=settings["images"], classes=tuple(settings["classes"]), finished=True)


def _checkpoint(source: str, images: int | None) -> _Saved:
    run = load_run_config(source) if Path(source, "config.yaml").is_file() else None
    there = storage.names(source)
    if not run and not any(FOLDER.fullmatch(name) or name == COMMIT for name in there):
        raise ConfigError(
            f"no model {source}: looked for a run's config.yaml, checkpoints (0000192000/{COMMIT}) and an exported model's "
            f"{EXPORTED[0]}; found {', '.join(there[:5]) or 'nothing'}"
        )
    found = locate(source, images)
    state, model = found.state(), saved_model(found)
    classes = state.get("classes")
    if run:
        model, classes = run.model, classes or load_data(kept_data(run)).classes
    if model is None:
        raise ConfigError(f"{found.uri} does not say which network it holds: name the folder of its run instead")
    if classes and not (isinstance(classes, list | tuple) and all(isinstance(name, str) for name in classes)):
        raise DataError(f"{found.uri}/state.json: classes are not names: use another checkpoint")
    if classes and len(classes) != model.num_classes:
        raise DataError(f"{found.uri}: {len(classes)} classes, but a network of {model.num_classes}: use another checkpoint")
    # In an import the averaged weights may have vectors of their own, and the recorded statistics belong to those sigmas.
    parts = [name for name in ("generator", "ema", "ema_vectors") if name in found.parts]
    tensors = {name: tensor for part in parts for name, tensor in found.tensors(part).items()}
    averaged = set(found.shapes.get("ema", {}))
    recorded = found.tensors("statistics") if "statistics" in found.parts else None
    names = tuple(classes) if classes else None
    return _Saved(
        config=model,
        tensors=tensors,
        images=found.images,
        classes=names,
        recorded=recorded,
        averaged=averaged,
        finished="source" in state,
    )
