"""That a version is what was registered, draws what it should, and serves by itself: the part of the gate that takes minutes.

None of it is taken from the model's own word. Its files are compared with the registry first. Our code then draws its golden
samples, and other samples that nobody could foresee; the model's code, in a process of its own, has to draw the latter alike.
"""

import hashlib
import io
import json
import os
import secrets
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pipeline.errors import DataError, GateError
from pipeline.generation import export
from pipeline.registry import isolated_load, model_digest, model_files
from pipeline.untrusted import parsing
from pipeline.wording import printable

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

    from pipeline.generation.load import TrainedGenerator

_MOST_LEVELS = 2
"""Of 255: how far a golden sample may be off on another machine, where sums are rounded otherwise."""
_LOAD_SECONDS = 900
# The candidate's code runs with these alone: variables with credentials are not among them.
_ENVIRONMENT = ("PATH", "TMPDIR", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")

Say = Callable[[str], None]
Pixels = npt.NDArray[np.uint8]


def prove(client: "MlflowClient", candidate: "ModelVersion", say: Say) -> dict[str, Any]:
    """Return what was compared, for the gate's report. Raises GateError, DataError if the version's files are gone."""
    named = f"{candidate.name} version {candidate.version}"
    if not candidate.tags.get("weights_sha256"):
        raise GateError(f"{named} has no tag weights_sha256: only what `biggan register` has made is promoted")
    with tempfile.TemporaryDirectory() as folder:
        say(f"downloading {named}")
        model = model_files.fetch(client, candidate, Path(folder), GateError)
        say("drawing its golden samples")
        trained, labels, difference = _draw_golden(model, candidate.tags.get(model_digest.GOLDEN), named)
        say("loading it in a process of its own")
        seed = secrets.randbelow(1 << 31)
        expected = _draw(trained, labels, seed)
        alone = _difference(_draw_alone(model, seed, labels, shape=expected.shape, folder=Path(folder), named=named), expected)
    if alone > _MOST_LEVELS:
        raise GateError(
            f"{named} does not draw by itself what its weights draw: values are off by {alone} of 255, allowed {_MOST_LEVELS}"
        )
    keys = ("weights_sha256", model_digest.FILES, model_digest.GOLDEN)
    drawn = {"images": len(labels), "difference": difference, "seed": seed, "difference_alone": alone}
    return drawn | {key: candidate.tags.get(key) for key in keys}


def _draw_golden(model: Path, expected: str | None, named: str) -> tuple["TrainedGenerator", list[int], int]:
    """Return the generator as our code builds it, the labels of its golden samples, and by how much our drawing differs."""
    from PIL import Image

    from pipeline.generation.exported_model import GOLDEN_MOST, read_settings
    from pipeline.generation.load import load_generator

    try:
        golden = read_settings(str(model / "artifacts" / export.CONFIG)).get("golden")
        file = model / "artifacts" / export.GOLDEN
        data = file.read_bytes() if file.is_file() else b""
        if golden is None or not data:
            raise GateError(f"{named} has no golden samples: register its run again under another --name")
        if expected and hashlib.sha256(data).hexdigest() != expected:
            raise GateError(f"{named}: its golden samples are not those that were registered")
        trained = load_generator(str(model))
        labels = golden["labels"]
        if not 0 < len(labels) <= GOLDEN_MOST or max(labels) >= trained.config.num_classes:
            raise GateError(f"{named}: its golden samples are of classes that it does not have: register its run again")
        drawn = _draw(trained, labels, golden["seed"])
        with parsing(export.GOLDEN):
            picture = Image.open(io.BytesIO(data), formats=["PNG"])
            fits = picture.size == (drawn.shape[1] * len(labels), drawn.shape[2])
            kept = np.atleast_3d(np.asarray(picture)) if fits else np.zeros((0, 0, 0), np.uint8)
    except DataError as error:
        raise GateError(f"{named}: {error}") from None
    difference = _difference(np.concatenate(list(drawn), axis=1), kept)
    if difference > _MOST_LEVELS:
        raise GateError(
            f"{named} does not draw its golden samples: values are off by {difference} of 255, allowed {_MOST_LEVELS}"
        )
    return trained, labels, difference


def _draw(trained: "TrainedGenerator", labels: list[int], seed: int) -> Pixels:
    """Return samples of `seed`, uint8 [n, H, W, C], drawn by our own code."""
    import torch

    from model.sampling import generate

    return generate(trained.generator, torch.tensor(labels), seed=seed).permute(0, 2, 3, 1).cpu().numpy()


def _difference(drawn: Pixels, expected: Pixels) -> int:
    """Return the largest difference between values of 0..255: 255 where even the shapes differ."""
    return 255 if drawn.shape != expected.shape else int(abs(drawn.astype(int) - expected).max())


def _draw_alone(model: Path, seed: int, labels: list[int], shape: tuple[int, ...], folder: Path, named: str) -> Pixels:
    """Return what the model's own code draws, in a process that has nothing of ours. Raises GateError if it does not."""
    home, out, said = folder / "home", folder / "drawn", folder / "said"
    home.mkdir()
    environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
    environment |= {"MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false", "MLFLOW_DISABLE_TELEMETRY": "true", "HOME": str(home)}
    command = [sys.executable, "-I", str(isolated_load.__file__), str(model), str(seed), json.dumps(labels), str(out)]
    none = subprocess.DEVNULL
    try:
        with open(said, "wb") as errors:
            done = subprocess.run(
                command, cwd="/", env=environment, stdin=none, stdout=none, stderr=errors, timeout=_LOAD_SECONDS, check=False
            )
    except subprocess.TimeoutExpired:
        raise GateError(f"{named} did not load and draw within {_LOAD_SECONDS} s") from None
    if done.returncode:
        raise GateError(f"{named} does not load by itself: {_last_line(said) or f'exit code {done.returncode}'}")
    pixels = _read_exactly(out, int(np.prod(shape)))
    if pixels is None:
        raise GateError(f"{named} does not draw by itself: it left no images of {' x '.join(map(str, shape))} values")
    return np.frombuffer(pixels, np.uint8).reshape(shape)


def _last_line(file: Path) -> str:
    """Return the end of what a process has said, printable: it may be long, and anything."""
    with open(file, "rb") as said:
        said.seek(max(0, file.stat().st_size - 4096))
        lines = said.read().decode(errors="replace").strip().splitlines()
    return printable(lines[-1][:300]) if lines else ""


def _read_exactly(file: Path, size: int) -> bytes | None:
    """Return the `size` bytes of a plain file that a process has left; None if it left anything else."""
    try:
        handle = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    with open(handle, "rb") as opened:
        status = os.fstat(handle)
        return opened.read(size) if stat.S_ISREG(status.st_mode) and status.st_size == size else None
