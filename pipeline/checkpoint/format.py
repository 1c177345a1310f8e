"""Checkpoints that a kill at any moment cannot spoil, independent of world size and ZeRO stage.

    <uri>/<images, 10 digits>-<attempt, 4 digits>/  (imported ones: no attempt)
        generator.rank00000.safetensors            slices of parameters and buffers, fp32, that rank 0 wrote
        generator_optimizer.rank00000.safetensors  of Adam's moments, by parameter
        discriminator..., discriminator_optimizer...
        ema...                                     of the averaged parameters of G
        state.json                                 counters, run, configuration, data
        COMMIT.json                                written last: size and sha256 of each file, which slices it has
        evaluation.json                            figures, once `biggan evaluate` has judged it
        DAMAGED.json, SET_ASIDE.json               why this folder is not used, but stays

Without its COMMIT a folder is no checkpoint. An attempt is one start of the training (`pipeline.checkpoint.fencing`): what an
earlier one writes late lands in a folder of its own. A slice is a stretch of a flattened tensor (`pipeline.engine.slices`);
where it is all of it, the file has the tensor in its shape. All random numbers of a run are keyed by seed and place, so the
counters in state.json are the whole state of every random generator and of the data stream.
"""

import hashlib
import json
import logging
import re
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Annotated, Any, TypeVar

import safetensors.torch
import torch
from pydantic import Field
from torch import Tensor, nn

from pipeline import storage
from pipeline.checkpoint.commit_document import COMMIT, Files, Shapes, content_fault, read_commit, write_commit
from pipeline.checkpoint.failpoints import fail_point
from pipeline.checkpoint.rank_files import run_of
from pipeline.engine.slices import Slice, whole
from pipeline.errors import ConfigError, DataError
from pipeline.storage.containment import below
from pipeline.untrusted import parse, parsing

__all__ = ["COMMIT", "Shapes"]
log = logging.getLogger(__name__)
T = TypeVar("T")
EVALUATION = "evaluation.json"
DAMAGED = "DAMAGED.json"
"""In the folder of a checkpoint that a start could not use: which file is at fault. Nothing here deletes such a folder."""
SET_ASIDE = "SET_ASIDE.json"
"""In a folder that belongs to a training before `--from-scratch`: nothing reads or deletes it."""
FOLDER = re.compile(r"(\d{10,})(?:-(\d{4,}))?")
Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Progress:
    """How far a run has come. `images` (real images that D has seen) is also the position of the data stream."""

    images: Annotated[int, Field(ge=0)] = 0
    g_steps: Annotated[int, Field(ge=0)] = 0
    rollbacks: Annotated[int, Field(ge=0)] = 0
    """How often the run has gone back (`pipeline.fault_tolerance.health`): part of the key of the data's order."""


@dataclass(frozen=True)
class Checkpoint:
    """A committed checkpoint: its files' hashes are checked as they are read."""

    uri: str
    files: Files
    shapes: Shapes
    """Of the whole tensors: part -> name -> shape."""
    time: float
    """When it was committed, in seconds since 1970."""
    checked: bool = False
    """Whether every file has been read, so that their sizes need not be asked for again."""

    @property
    def images(self) -> int:
        return place_of(self.uri)[0]

    @property
    def parts(self) -> set[str]:
        """What `tensors` can be asked for."""
        return set(self.shapes)

    def read(self, name: str) -> bytes:
        """The bytes of one file. Raises DataError if they are not those that were committed."""
        data, row = storage.read_bytes(below(self.uri, name, storage.join(self.uri, COMMIT))), self.files[name]
        if len(data) != row.bytes or hashlib.sha256(data).hexdigest() != row.sha256:
            raise DataError(
                f"{storage.join(self.uri, name)} is damaged: its SHA-256 is not that in {COMMIT}. Restore it from a copy, or "
                "use another checkpoint"
            )
        if wrong := content_fault(row, data):
            raise DataError(f"{storage.join(self.uri, name)} is not what {COMMIT} says: {wrong}; use another checkpoint")
        return data

    def fault(self, *, read: bool = True) -> str:
        """Return which file is missing, cut or damaged, "" if none is. Unless it may `read` them, their sizes must do."""
        for name, row in self.files.items():
            try:
                if read:
                    self.read(name)
                elif storage.size(below(self.uri, name, storage.join(self.uri, COMMIT))) != row.bytes:
                    return f"{name} is cut"
            except storage.NotFoundError:
                return f"{name} is missing"
            except DataError:
                return f"{name} is damaged"
        return ""

    def tensors(self, part: str) -> Tensors:
        """Whole tensors by name. Raises DataError if there is no such part, or if a file of it is damaged."""
        if part not in self.shapes:
            raise DataError(f"{self.uri} has no {part}: use another checkpoint")
        for file in [] if self.checked else self._files_of(part):  # before memory for what COMMIT says is asked for
            if (there := storage.size(storage.join(self.uri, file))) != (size := self.files[file].bytes):
                raise DataError(f"{storage.join(self.uri, file)} is cut: {there:,} bytes, not {size:,}; use another checkpoint")
        found = {name: torch.empty(shape) for name, shape in self.shapes[part].items()}
        self.fill(part, whole(found))
        return found

    def fill(self, part: str, wanted: Iterable[Slice]) -> None:
        """Copy what was saved into all of the data of `wanted`, reading only the files that have some of it.

        Raises ConfigError if a tensor is not there or has another shape, DataError if a file is damaged.
        """
        slices = {s.name: s for s in wanted}
        for s in slices.values():
            if (there := self.shapes.get(part, {}).get(s.name)) is None or tuple(there) != s.shape:
                raise ConfigError(
                    f"{self.uri}: its {part} is of another network: it has {'no' if there is None else there} {s.name}, the "
                    f"configuration's has {list(s.shape)}; name the configuration that it was trained with"
                )
        for file in self._files_of(part):
            held = self.files[file].slices or {}
            overlaps = [(slices[name], offset, count) for name, (offset, count) in held.items() if name in slices]
            overlaps = [(s, o, n) for s, o, n in overlaps if o < s.offset + len(s.data) and s.offset < o + n]
            if not overlaps:
                continue
            data = self.read(file)
            with parsing(f"{storage.join(self.uri, file)} is damaged", "use another checkpoint"):
                tensors = safetensors.torch.load(data)
            for s, offset, count in overlaps:
                start, end = max(offset, s.offset), min(offset + count, s.offset + len(s.data))
                s.data[start - s.offset : end - s.offset] = tensors[s.name].reshape(-1)[start - offset : end - offset]

    def _files_of(self, part: str) -> list[str]:
        return [file for file in self.files if file.partition(".")[0] == part]

    def state(self) -> dict[str, Any]:
        """Counters, run, configuration, data. Raises DataError."""
        return parse(dict[str, Any], self.read("state.json"), f"{self.uri}/state.json", "use another checkpoint")

    def told(self, key: str, kind: type[T]) -> T:
        """Return what the state says under `key` as a `kind`, by its defaults where it says nothing. Raises DataError."""
        found = json.dumps(self.state().get(key, {}))
        return parse(kind, found, f"{self.uri}/state.json: {key}", "use another checkpoint")

    def run(self) -> str | None:
        """Return the id of the run that saved it, None for an import. Raises NotFoundError or DataError if that is damaged."""
        return run_of(self.uri, self.files["state.json"].sha256)

    def progress(self) -> Progress:
        return self.told("progress", Progress)

    def verify(self) -> "Checkpoint":
        """Read every file and return it as checked. Raises DataError or StorageError for the first damaged or missing one."""
        for name in self.files:
            self.read(name)
        return replace(self, checked=True)

    def figure(self, name: str) -> tuple[str, float] | None:
        """What `biggan evaluate` found: the id of its recipe, and `accuracy` or `fid` by some extractor; None if nothing."""
        place = storage.join(self.uri, EVALUATION)
        if not storage.exists(place):
            return None
        found = parse(dict[str, Any], storage.read_bytes(place), place, "evaluate it again")
        numbers = {key: float(value) for key, value in found.items() if type(value) in (int, float)}
        values = (value for key, value in numbers.items() if key.partition("[")[0].lower() == name)
        return next(((str(found.get("recipe_id", "")), value) for value in values), None)


def folders(uri: str) -> list[str]:
    """Names of the folders of checkpoints below `uri`, committed or not, newest first."""
    found = [match for name in storage.names(uri) if (match := FOLDER.fullmatch(name))]
    return [match[0] for match in sorted(found, key=lambda m: (int(m[1]), int(m[2] or 0)), reverse=True)]


def warn(folder: str, fault: str) -> None:
    log.warning("passing over a damaged checkpoint: %s/%s", folder, fault)


def committed(uri: str, passed_over: Callable[[str, str], object] = warn) -> Iterator[Checkpoint]:
    """Yield the committed checkpoints below `uri`, newest first, not yet verified.

    Calls `passed_over(folder, fault)` for one whose COMMIT is damaged. Raises ConfigError at one of a newer format: skipping
    it would throw away what it holds.
    """
    for name in folders(uri):
        folder = storage.join(uri, name)
        if storage.exists(storage.join(folder, SET_ASIDE)):
            continue
        try:
            yield load(folder)
        except storage.NotFoundError:
            continue
        except DataError:
            passed_over(folder, f"{COMMIT} is damaged")


def load(folder: str) -> Checkpoint:
    """The checkpoint in `folder`, not yet verified. Raises NotFoundError, ConfigError for a newer format, DataError."""
    return Checkpoint(folder, *read_commit(folder, storage.read_bytes(storage.join(folder, COMMIT))))


def newest(
    uri: str, good: Callable[[Checkpoint], bool] = lambda _: True, passed_over: Callable[[str, str], object] = warn
) -> Checkpoint | None:
    """Return the newest checkpoint that is committed, intact and `good`; `passed_over` as in `committed`, of damaged ones."""
    for checkpoint in committed(uri, passed_over):
        if fault := checkpoint.fault():
            passed_over(checkpoint.uri, fault)
        elif good(checkpoint):
            return replace(checkpoint, checked=True)
    return None


def mark(folder: str, name: str, why: str) -> None:
    """Put the marker `name`, DAMAGED or SET_ASIDE, into a checkpoint's folder. Raises StorageError or ConfigError."""
    storage.write_bytes(storage.join(folder, name), json.dumps({"time": time.time(), "why": why}).encode())


def folder_name(images: int, attempt: int) -> str:
    """Attempt 0, of `save`, stands for no training."""
    return f"{images:010d}-{attempt:04d}" if attempt else f"{images:010d}"


def commit(folder: str, files: Files, shapes: Shapes) -> Checkpoint:
    """Make `files` a checkpoint. Raises RuntimeError if they are not all of each tensor of `shapes`: a bug of the writer."""
    data = write_commit(files, shapes, now := time.time())
    fail_point("commit")
    storage.write_bytes(storage.join(folder, COMMIT), data)
    fail_point("committed")
    return Checkpoint(folder, files, shapes, now)


def network_tensors(network: nn.Module) -> Tensors:
    return {name: tensor.detach().float() for name, tensor in network.state_dict().items()}


def place_of(folder: str) -> tuple[int, int]:
    """Return (images, attempt) of a folder of `folder_name`."""
    images, _, attempt = folder.rpartition("/")[2].partition("-")
    return int(images), int(attempt or 0)
