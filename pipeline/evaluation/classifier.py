"""The judge of samples: a small CNN that learns the classes from the real training shards, apart from the GAN.

It says of a picture which class it shows (class accuracy), and gives 64 features of it (Fréchet distance).
"""

import dataclasses
import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any

import safetensors.torch
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from typing_extensions import TypedDict

from pipeline import storage
from pipeline.checkpoint.saved_network import check_fit
from pipeline.data.loader import DataConfig, DataLoader
from pipeline.data.manifest import Manifest
from pipeline.errors import ConfigError, DataError
from pipeline.images.floats import to_floats
from pipeline.untrusted import parse, parsing

FEATURES = 64
"""Width of the penultimate layer."""

VARIANCE = 1000.0
"""Sum of the features' variances over real training images. How large features come out of training is an accident (it
differed by a factor of 60 between two judges of 91 %), and a Fréchet distance grows with its square. With this sum,
Fashion-MNIST's judge puts real images at 0.4 from real images, images blurred by 2 pixels at 110, class means at 500."""

_LANES = 48
"""Of the order in which a judge sees images, whatever the default of training is: another one makes another judge."""

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All that decides the weights besides the shards. Reaches 91 % on Fashion-MNIST's test images."""

    version: int = 1
    """Of this file's architecture and training; another one makes another judge."""
    epochs: float = 2.0
    min_steps: int = 200
    """Small sets are seen more often than `epochs` times."""
    batch: int = 128
    peak_lr: float = 4e-3
    """Of Adam, in one cycle."""
    seed: int = 0


class Classifier(nn.Module):
    """CNN for uint8 images [n, channels, r, r] with r a power of two, 16 at least."""

    def __init__(self, resolution: int, channels: int, num_classes: int) -> None:
        super().__init__()
        if resolution < 16 or resolution & (resolution - 1):
            raise ValueError(f"resolution={resolution}: must be a power of two, 16 at least")
        layers: list[nn.Module] = []
        inputs, width, size = channels, 24, resolution
        while size > 4:
            layers += [*_convolution(inputs, width), nn.MaxPool2d(2)]
            inputs, width, size = width, min(2 * width, FEATURES), size // 2
        self.body = nn.Sequential(*layers, nn.Flatten(), nn.Linear(inputs * size**2, FEATURES), nn.ReLU())
        self.head = nn.Linear(FEATURES, num_classes)

    def features(self, images: Tensor) -> Tensor:
        """uint8 [n, C, r, r] -> float32 [n, 64]."""
        x = to_floats(images).contiguous(memory_format=torch.channels_last)
        return self.body(x).float()

    def forward(self, images: Tensor) -> Tensor:
        """uint8 [n, C, r, r] -> logits float32 [n, classes]."""
        return self.head(self.features(images))


@dataclass(frozen=True)
class Judge:
    """A trained classifier and where it came from."""

    classifier: Classifier
    """In eval mode."""
    key: str
    """Hash of recipe and training shards: judges with one key were trained alike."""
    place: str
    """Its file."""
    seconds: float
    """That its training took, now or when it was made."""
    sha256: str
    """Of that file."""


class _Notes(TypedDict):
    """What is read of the file beside a judge that was kept."""

    sha256: str
    seconds: Annotated[float, Field(ge=0)]


def obtain_judge(train: DataConfig, manifest: Manifest, cache: str, say: Say, recipe: Recipe = Recipe()) -> Judge:
    """The judge for these shards: from the folder `cache` (any URI), else trained now and kept there.

    Raises ConfigError for shards that no class can be learnt from, DataError if what `cache` holds is damaged.
    """
    _check(train, manifest)
    identity: dict[str, Any] = {"recipe": dataclasses.asdict(recipe), "fingerprint": manifest.fingerprint}
    if train.shape(manifest)[0] != manifest.resolution:
        identity["resolution"] = train.shape(manifest)[0]
    if train.crop:
        identity["crop"] = train.crop
    key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
    place = storage.join(cache, f"classifier-{key}.safetensors")
    notes = storage.join(cache, f"classifier-{key}.json")  # written last: without it the weights do not count
    if not storage.exists(notes):
        say(f"training the judge on {manifest.samples:,} images of {train.uri}")
        began = time.perf_counter()
        trained = train_classifier(train, manifest, recipe, say)
        seconds = round(time.perf_counter() - began, 1)
        data = safetensors.torch.save({name: value.cpu().contiguous() for name, value in trained.state_dict().items()})
        storage.write_bytes(place, data)
        made = {**identity, "train": train.uri, "seconds": seconds, "sha256": hashlib.sha256(data).hexdigest()}
        storage.write_bytes(notes, json.dumps(made, indent=1).encode())
    # Read back even when it is new: the same figures then come out the second time, to the last digit.
    known, data = parse(_Notes, storage.read_bytes(notes), notes, "delete it"), storage.read_bytes(place)
    advice = f"delete it and {notes}, then run the same command again"
    if hashlib.sha256(data).hexdigest() != known["sha256"]:
        raise DataError(f"{place} is damaged: {advice}")
    with parsing(f"{place} is damaged", advice):
        tensors = safetensors.torch.load(data)
    classifier = _empty(train, manifest)
    check_fit(classifier, tensors, place)
    classifier.load_state_dict(tensors)
    return Judge(classifier.to(_device()).eval(), key, place, known["seconds"], known["sha256"])


def train_classifier(train: DataConfig, manifest: Manifest, recipe: Recipe, say: Say) -> Classifier:
    """Cross-entropy, one cycle of Adam, no augmentation; returns it in eval mode. The same on every call."""
    device = _device()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        classifier = _empty(train, manifest).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    steps = max(recipe.min_steps, round(recipe.epochs * manifest.samples / recipe.batch))
    optimizer = torch.optim.Adam(classifier.parameters(), fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.peak_lr, total_steps=steps)
    last_said = time.monotonic()
    batches = real_batches(train, manifest, steps * recipe.batch, recipe.batch, recipe.seed)
    for step, (images, labels) in enumerate(batches):
        # Half the time of fp32 where the CPU has bf16 units; the layers' statistics and the loss stay in fp32.
        with torch.autocast(device.type, torch.bfloat16):
            logits = classifier(images.to(device))
        loss = F.cross_entropy(logits.float(), labels.to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if time.monotonic() - last_said > 10:
            last_said = time.monotonic()
            say(f"  step {step + 1:,} of {steps:,}, loss {loss.item():.3f}")
    _scale_features(classifier.eval(), train, manifest, recipe.batch)
    return classifier


@torch.no_grad()
def _scale_features(classifier: Classifier, train: DataConfig, manifest: Manifest, batch: int) -> None:
    """Give the features their `VARIANCE`, and the head the inverse: behind a ReLU a factor changes no answer."""
    device = next(classifier.parameters()).device
    batches = real_batches(train, manifest, min(10_000, manifest.samples), batch)
    features = torch.cat([classifier.features(images.to(device)).double() for images, _ in batches])
    factor = math.sqrt(VARIANCE / features.var(0).sum().item())
    penultimate = classifier.body[-2]
    assert isinstance(penultimate, nn.Linear)
    penultimate.weight.mul_(factor)
    penultimate.bias.mul_(factor)
    classifier.head.weight.div_(factor)


def real_batches(
    config: DataConfig, manifest: Manifest, count: int, batch: int, seed: int = 0, start: int = 0
) -> Iterator[tuple[Tensor, Tensor]]:
    """The first `count` images of the order under `seed`, as (uint8 [n, C, r, r], labels [n]), n = `batch` or the rest.

    Those before `start`, a multiple of `batch`, are left out. The first `manifest.samples` hold each image once.
    """
    config = dataclasses.replace(config, lanes=_LANES)
    stream = DataLoader(
        config, manifest, seed=seed, global_batch=batch, micro_batch=batch, rank=0, world_size=1, position=start
    )
    with stream:
        for _, read in zip(range(start, count, batch), stream, strict=False):
            # A batch is sorted by lane, not by position.
            kept = read.positions < count
            yield read.images[kept], read.labels[kept]


def _convolution(inputs: int, outputs: int) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]


def _empty(train: DataConfig, manifest: Manifest) -> Classifier:
    side, _, channels = train.shape(manifest)
    return Classifier(side, channels, len(manifest.classes))


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _check(train: DataConfig, manifest: Manifest) -> None:
    if len(manifest.classes) < 2:
        raise ConfigError(f"--train {train.uri} has {len(manifest.classes)} class: class accuracy needs 2 at least")
    if (side := train.shape(manifest)[0]) < 16:
        raise ConfigError(f"--train {train.uri} has images of {side} pixels: evaluation needs 16 at least")
