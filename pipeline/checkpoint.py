"""Checkpoints that a kill at any moment cannot spoil, independent of world size and ZeRO stage.

    <uri>/<images, 10 digits>/generator.safetensors            parameters and buffers, fp32
                              generator_optimizer.safetensors  Adam's moments, by parameter
                              discriminator..., discriminator_optimizer...
                              ema.safetensors                  averaged parameters of G
                              state.json                       counters, run, configuration, data
                              COMMIT.json                      size and sha256 of each file, written last

Without its COMMIT a folder is no checkpoint. All random numbers of a run are keyed by seed and place, so the counters in
state.json are the whole state of every random generator and of the data stream.
"""

import hashlib
import itertools
import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from pipeline import storage
from pipeline.engines import Engine
from pipeline.errors import DataError

log = logging.getLogger(__name__)
COMMIT = "COMMIT.json"
Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class CheckpointConfig:
    """When and where a run saves itself."""

    every: int = 200_000
    """Images between two checkpoints; one is always written at the end."""
    keep: int = 2
    """Checkpoints to keep: the newest ones."""
    uri: str | None = None
    """Any fsspec URI. Default: `checkpoints` in the run's folder."""

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ValueError(f"every={self.every}: must be at least 1 image")
        if self.keep < 2:
            raise ValueError(f"keep={self.keep}: must be at least 2: the newest checkpoint may turn out to be damaged")


@dataclass(frozen=True)
class Progress:
    """How far a run has come. `images` (real images that D has seen) is also the position of the data stream."""

    images: int = 0
    g_steps: int = 0
    rollbacks: int = 0
    """How often the run has gone back (`pipeline.health`): part of the key of the data's order."""


@dataclass(frozen=True)
class Checkpoint:
    """A committed checkpoint: its files' hashes are checked as they are read."""

    uri: str
    files: dict[str, dict[str, Any]]

    @property
    def images(self) -> int:
        return int(self.uri.rsplit("/", 1)[-1])

    def read(self, name: str) -> bytes:
        """The bytes of one file. Raises DataError if they are not those that were committed."""
        data = storage.read_bytes(storage.join(self.uri, name))
        if len(data) != self.files[name]["bytes"] or hashlib.sha256(data).hexdigest() != self.files[name]["sha256"]:
            raise DataError(f"{storage.join(self.uri, name)} is not what was committed: delete the folder {self.uri}")
        return data

    def tensors(self, name: str) -> Tensors:
        return safetensors.torch.load(self.read(f"{name}.safetensors"))

    def state(self) -> dict[str, Any]:
        return json.loads(self.read("state.json"))

    def progress(self) -> Progress:
        return Progress(**self.state()["progress"])

    def verify(self) -> None:
        """Read every file. Raises DataError or StorageError for the first that is damaged or missing."""
        for name in self.files:
            self.read(name)


def committed(uri: str) -> Iterator[Checkpoint]:
    """Checkpoints below `uri` that have been committed, newest first; not yet verified."""
    for name in sorted(storage.names(uri), reverse=True):
        folder = storage.join(uri, name)
        if name.isdigit() and storage.exists(storage.join(folder, COMMIT)):
            try:
                listed = json.loads(storage.read_bytes(storage.join(folder, COMMIT)))["files"]
                files = {file: {"bytes": row["bytes"], "sha256": row["sha256"]} for file, row in listed.items()}
                files["state.json"]  # every checkpoint has one
            except (ValueError, KeyError, TypeError, AttributeError):
                log.warning("%s has a damaged %s and is passed over", folder, COMMIT)
            else:
                yield Checkpoint(folder, files)


def newest(uri: str, good: Callable[[Checkpoint], bool] = lambda _: True) -> Checkpoint | None:
    """The newest checkpoint that is committed, intact and `good`; damaged ones are named in a warning and passed over."""
    for checkpoint in committed(uri):
        try:
            checkpoint.verify()
        except (DataError, storage.NotFoundError) as error:
            log.warning("passing over a damaged checkpoint: %s", error)
        else:
            if good(checkpoint):
                return checkpoint
    return None


def save(uri: str, progress: Progress, tensors: dict[str, Tensors], state: dict[str, Any], keep: int) -> Checkpoint:
    """Write and commit one checkpoint, then remove all but it and the `keep` - 1 before it. Rank 0 only."""
    folder = storage.join(uri, f"{progress.images:010d}")
    _remove(folder)
    data = {f"{name}.safetensors": safetensors.torch.save(_whole(part)) for name, part in tensors.items()}
    data["state.json"] = json.dumps({"progress": asdict(progress), **state}, indent=1).encode()
    files = {name: {"bytes": len(part), "sha256": hashlib.sha256(part).hexdigest()} for name, part in data.items()}
    for name, part in data.items():
        storage.write_bytes(storage.join(folder, name), part)
    storage.write_bytes(storage.join(folder, COMMIT), json.dumps({"files": files}, indent=1).encode())
    # Newer ones were damaged, or training would have gone on from there: they must not push the good ones out.
    older = (checkpoint for checkpoint in committed(uri) if checkpoint.images <= progress.images)
    kept = {checkpoint.uri for checkpoint in itertools.islice(older, keep)}
    for name in storage.names(uri):
        old = storage.join(uri, name)
        if name.isdigit() and old not in kept:
            _remove(old)
    return Checkpoint(folder, files)


def _remove(folder: str) -> None:
    # COMMIT goes first: a kill in between must not leave something that looks whole.
    storage.remove(storage.join(folder, COMMIT))
    storage.remove_folder(folder)


def _whole(tensors: Tensors) -> Tensors:
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}


def network_tensors(network: nn.Module) -> Tensors:
    return {name: tensor.detach().float() for name, tensor in network.state_dict().items()}


def optimizer_tensors(engine: Engine) -> Tensors:
    """Adam's moments by parameter name, gathered from all ranks. Collective; empty for SGD or before the first step."""
    from deepspeed.utils import safe_get_full_optimizer_state

    keys = [key for key in ("exp_avg", "exp_avg_sq") if any(key in s for s in engine.optimizer.state.values())]
    engine.zero._lazy_init_hp_params_optimizer_state()
    gathered = {
        f"{key}/{name}": safe_get_full_optimizer_state(parameter, key)
        for key in keys
        for name, parameter in engine.module.named_parameters()
    }
    if keys:
        gathered["step"] = next(s["step"] for s in engine.optimizer.state.values() if "step" in s)
    return gathered


def load_optimizer(engine: Engine, tensors: Tensors) -> None:
    """Put saved moments where this rank's share of the optimiser looks for them. Call before the first step."""
    from deepspeed.utils import safe_set_full_optimizer_state

    if not tensors:
        return
    for group in engine.optimizer.param_groups:
        for partition in group["params"]:
            engine.optimizer.state[partition] = {
                "step": tensors["step"].clone().to(partition.device),
                "exp_avg": torch.zeros_like(partition),
                "exp_avg_sq": torch.zeros_like(partition),
            }
    engine.zero._lazy_init_hp_params_optimizer_state()
    for name, parameter in engine.module.named_parameters():
        for key in ("exp_avg", "exp_avg_sq"):
            safe_set_full_optimizer_state(parameter, tensors[f"{key}/{name}"].to(parameter.device), key)
