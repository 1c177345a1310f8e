"""Checkpoints that a kill at any moment cannot spoil, independent of world size and ZeRO stage.

    <uri>/<images, 10 digits>-<attempt, 4 digits>/  (imported ones: no attempt)
        generator.rank00000.safetensors            slices of parameters and buffers, fp32, that rank 0 wrote
        generator_optimizer.rank00000.safetensors  of Adam's moments, by parameter
        discriminator..., discriminator_optimizer...
        ema...                                     of the averaged parameters of G
        state.json                                 counters, run, configuration, data
        COMMIT.json                                written last: size and sha256 of each file, which slices it has
        evaluation.json                            figures, once `biggan evaluate` has judged it

Without its COMMIT a folder is no checkpoint. An attempt is one start of the training (`pipeline.fence`): what an earlier one
writes late lands in a folder of its own. A slice is a stretch of a flattened tensor (`pipeline.slices`); where it is all of
it, the file has the tensor in its shape. All random numbers of a run are keyed by seed and place, so the counters in
state.json are the whole state of every random generator and of the data stream.
"""

import hashlib
import json
import logging
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import safetensors.torch
import torch
from torch import Tensor, nn

from pipeline import storage
from pipeline.addresses import is_web
from pipeline.errors import ConfigError, DataError
from pipeline.failpoints import fail_point
from pipeline.slices import Slice, whole
from pipeline.wording import hide_secrets

log = logging.getLogger(__name__)
COMMIT = "COMMIT.json"
EVALUATION = "evaluation.json"
FORMAT = 2
FOLDER = re.compile(r"(\d{10,})(?:-(\d{4,}))?")
Tensors = dict[str, Tensor]
Files = dict[str, dict[str, Any]]
Shapes = dict[str, dict[str, list[int]]]


@dataclass(frozen=True)
class CheckpointConfig:
    """When and where a run saves itself, and what of it stays."""

    every: int = 200_000
    """Images between two checkpoints; one is always written at the end."""
    keep: int = 2
    """Checkpoints to keep: the newest ones."""
    keep_every: int | None = None
    """Of each so many images, also keep the first checkpoint for good."""
    keep_best: Literal["fid", "accuracy"] | None = None
    """Also keep the one that `biggan evaluate` found the best by this figure (of several recipes, the best by each)."""
    max_loss: int | None = None
    """Images that a store that takes nothing may put at risk before the run stops. Default: 5 times `every`."""
    uri: str | None = None
    """Any fsspec URI. Default: `checkpoints` in the run's folder."""

    def __post_init__(self) -> None:
        if self.uri and is_web(self.uri):
            raise ValueError(f"uri={hide_secrets(self.uri)}: HTTP is read only; name a folder or an object store")
        if self.every < 1:
            raise ValueError(f"every={self.every}: must be at least 1 image")
        if self.keep < 2:
            raise ValueError(f"keep={self.keep}: must be at least 2: the newest checkpoint may turn out to be damaged")
        if self.keep_every is not None and self.keep_every < self.every:
            raise ValueError(f"keep_every={self.keep_every}: must be at least every={self.every}")
        if self.max_loss is not None and self.max_loss < self.every:
            raise ValueError(f"max_loss={self.max_loss}: must be at least every={self.every}, which a crash costs anyway")

    @property
    def loss_limit(self) -> int:
        return 5 * self.every if self.max_loss is None else self.max_loss


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
    files: Files
    """By name: `bytes`, `sha256`, and for tensors `slices`: name -> [offset, count]."""
    shapes: Shapes
    """Of the whole tensors: part -> name -> shape."""
    time: float
    """When it was committed, in seconds since 1970."""

    @property
    def images(self) -> int:
        return int(self.uri.rpartition("/")[2].partition("-")[0])

    @property
    def parts(self) -> set[str]:
        """What `tensors` can be asked for."""
        return set(self.shapes)

    def read(self, name: str) -> bytes:
        """The bytes of one file. Raises DataError if they are not those that were committed."""
        data = storage.read_bytes(storage.join(self.uri, name))
        if len(data) != self.files[name]["bytes"] or hashlib.sha256(data).hexdigest() != self.files[name]["sha256"]:
            raise DataError(f"{storage.join(self.uri, name)} is not what was committed: delete the folder {self.uri}")
        return data

    def tensors(self, part: str) -> Tensors:
        """Whole tensors by name. Raises DataError if a file is damaged."""
        found = {name: torch.empty(shape) for name, shape in self.shapes[part].items()}
        self.fill(part, whole(found))
        return found

    def fill(self, part: str, wanted: Iterable[Slice]) -> None:
        """Copy what was saved into the data of `wanted`, reading only the files that have some of it.

        Raises ConfigError if a tensor is not there or has another shape, DataError if a file is damaged.
        """
        slices = {s.name: s for s in wanted}
        for s in slices.values():
            if (there := self.shapes[part].get(s.name)) is None or tuple(there) != s.shape:
                raise ConfigError(
                    f"{self.uri}: its {part} is of another network: it has {'no' if there is None else there} {s.name}, the "
                    f"configuration's has {list(s.shape)}; name the configuration that it was trained with"
                )
        for file, row in self.files.items():
            if file.partition(".")[0] != part:
                continue
            overlaps = [(slices[name], *place) for name, place in row["slices"].items() if name in slices]
            overlaps = [(s, o, n) for s, o, n in overlaps if o < s.offset + len(s.data) and s.offset < o + n]
            tensors = safetensors.torch.load(self.read(file)) if overlaps else {}
            for s, offset, count in overlaps:
                start, end = max(offset, s.offset), min(offset + count, s.offset + len(s.data))
                s.data[start - s.offset : end - s.offset] = tensors[s.name].reshape(-1)[start - offset : end - offset]

    def state(self) -> dict[str, Any]:
        return json.loads(self.read("state.json"))

    def progress(self) -> Progress:
        return Progress(**self.state()["progress"])

    def verify(self) -> None:
        """Read every file. Raises DataError or StorageError for the first that is damaged or missing."""
        for name in self.files:
            self.read(name)

    def figure(self, name: str) -> tuple[str, float] | None:
        """What `biggan evaluate` found: the id of its recipe, and `accuracy` or `fid` by some extractor; None if nothing."""
        place = storage.join(self.uri, EVALUATION)
        if not storage.exists(place):
            return None
        found = json.loads(storage.read_bytes(place))
        values = (float(value) for key, value in found.items() if key.partition("[")[0].lower() == name)
        return next(((found.get("recipe_id", ""), value) for value in values), None)


def folders(uri: str) -> list[str]:
    """Names of the folders of checkpoints below `uri`, committed or not, newest first."""
    found = [match for name in storage.names(uri) if (match := FOLDER.fullmatch(name))]
    return [match[0] for match in sorted(found, key=lambda m: (int(m[1]), int(m[2] or 0)), reverse=True)]


def committed(uri: str) -> Iterator[Checkpoint]:
    """Checkpoints below `uri` that have been committed, newest first; not yet verified.

    Raises ConfigError at one of a newer format: to pass it over would be to throw away what it holds.
    """
    for name in folders(uri):
        folder = storage.join(uri, name)
        try:
            yield load(folder)
        except storage.NotFoundError:
            continue
        except DataError as error:
            log.warning("%s and is passed over", error)


def load(folder: str) -> Checkpoint:
    """The checkpoint in `folder`, not yet verified. Raises NotFoundError, ConfigError for a newer format, DataError."""
    try:
        document = json.loads(storage.read_bytes(storage.join(folder, COMMIT)))
        body, digest = document["commit"], document["sha256"]
        intact = _digest(body) == digest
        version = body["format"] if intact else None
    except (ValueError, KeyError, TypeError):
        intact = False
    if not intact:
        raise DataError(f"{folder} has a damaged {COMMIT}")
    if version != FORMAT:
        raise ConfigError(f"{folder} has format {version}, this version reads format {FORMAT}: use the version that wrote it")
    return Checkpoint(folder, body["files"], body["shapes"], body["time"])


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


def folder_name(images: int, attempt: int) -> str:
    """Attempt 0, of `save`, stands for no training."""
    return f"{images:010d}-{attempt:04d}" if attempt else f"{images:010d}"


def write_part(folder: str, part: str, rank: int, slices: list[Slice]) -> Files:
    """Write what `rank` has of `part`, fp32 on the host, without copying it; what COMMIT says of the file."""
    if not slices:
        return {}
    tables, end = {}, 0
    for s in slices:
        start, end = end, end + 4 * len(s.data)
        shape = s.shape if len(s.data) == _count(s.shape) else [len(s.data)]
        tables[s.name] = {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}
    # https://huggingface.co/docs/safetensors: length of the header, header, data.
    header = json.dumps(tables).encode()
    header += b" " * (-len(header) % 8)
    chunks: list[bytes | memoryview] = [len(header).to_bytes(8, "little") + header]
    chunks += [s.data.numpy().data.cast("B") for s in slices]
    row = _write(folder, name := f"{part}.rank{rank:05d}.safetensors", chunks)
    return {name: row | {"slices": {s.name: [s.offset, len(s.data)] for s in slices}}}


def write_state(folder: str, progress: Progress, state: Mapping[str, Any]) -> Files:
    data = json.dumps({"progress": asdict(progress), **state}, indent=1).encode()
    return {"state.json": _write(folder, "state.json", [data])}


def _write(folder: str, name: str, chunks: list[bytes | memoryview]) -> dict[str, Any]:
    digest, size = hashlib.sha256(), 0

    def hashed() -> Iterator[bytes | memoryview]:
        nonlocal size
        for i, chunk in enumerate(chunks):
            if i == len(chunks) // 2:
                fail_point("upload")
            for start in range(0, len(chunk), storage.PART_BYTES):
                piece = chunk[start : start + storage.PART_BYTES]
                digest.update(piece)
                size += len(piece)
                yield piece

    fail_point("write")
    storage.write_chunks(storage.join(folder, name), hashed())
    fail_point("written")
    return {"bytes": size, "sha256": digest.hexdigest()}


def commit(folder: str, files: Files, shapes: Shapes) -> Checkpoint:
    """Make `files` a checkpoint. Raises RuntimeError if they are not all of each tensor of `shapes`: a bug of the writer."""
    for part, tensors in shapes.items():
        for name, shape in tensors.items():
            rows = [row["slices"] for file, row in files.items() if file.partition(".")[0] == part]
            places = sorted(row[name] for row in rows if name in row)
            ends = [0, *(offset + count for offset, count in places)]
            if [offset for offset, _ in places] != ends[:-1] or ends[-1] != _count(shape):
                raise RuntimeError(f"{folder}: {part} {name} {shape} would be saved as {places}")
    now = time.time()
    body = {"format": FORMAT, "time": now, "files": files, "shapes": shapes}
    fail_point("commit")
    data = json.dumps({"commit": body, "sha256": _digest(body)}).encode()
    storage.write_bytes(storage.join(folder, COMMIT), data)
    fail_point("committed")
    return Checkpoint(folder, files, shapes, now)


def retain(uri: str, saved: Checkpoint, config: CheckpointConfig) -> None:
    """Remove what `config` does not keep, after `saved` was committed."""
    # Newer ones were damaged, or training would have gone on from there: they must not push the good ones out.
    older = [checkpoint for checkpoint in committed(uri) if checkpoint.images < saved.images]
    kept = {saved.uri, *(checkpoint.uri for checkpoint in [saved, *older][: config.keep])}
    if config.keep_every:
        firsts = {c.images // config.keep_every: c.uri for c in [saved, *older]}  # the oldest of each comes last
        kept |= {uri for number, uri in firsts.items() if number}
    if config.keep_best:
        sign = 1 if config.keep_best == "fid" else -1
        judged = [(*figure, c.uri) for c in [saved, *older] if (figure := c.figure(config.keep_best))]
        # Figures of different recipes cannot be compared: of each the best, which comes last and stays.
        kept |= set({recipe: uri for recipe, _, uri in sorted(judged, key=lambda j: sign * j[1], reverse=True)}.values())
    for name in folders(uri):
        if (old := storage.join(uri, name)) not in kept:
            remove(old)


def remove(folder: str) -> None:
    """Delete a checkpoint, or what there is of it."""
    # COMMIT goes first: a kill in between must not leave something that looks whole.
    storage.remove(storage.join(folder, COMMIT))
    fail_point("retain")
    storage.remove_folder(folder)


def save(uri: str, progress: Progress, tensors: dict[str, Tensors], state: dict[str, Any], keep: int) -> Checkpoint:
    """Write and commit one checkpoint from one process, then remove all but it and the `keep` - 1 before it."""
    folder = storage.join(uri, folder_name(progress.images, 0))
    remove(folder)
    files: Files = {}
    for part, named in tensors.items():
        slices = [Slice(s.name, s.shape, 0, s.data.float().cpu().contiguous()) for s in whole(named)]
        files |= write_part(folder, part, 0, slices)
    files |= write_state(folder, progress, state)
    shapes = {part: {name: list(t.shape) for name, t in named.items()} for part, named in tensors.items()}
    saved = commit(folder, files, shapes)
    retain(uri, saved, CheckpointConfig(every=1, keep=keep))
    return saved


def network_tensors(network: nn.Module) -> Tensors:
    return {name: tensor.detach().float() for name, tensor in network.state_dict().items()}


def _digest(body: Any) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _count(shape: Iterable[int]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count
