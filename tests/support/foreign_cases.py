"""Folders as other projects leave them, made again from what benchmarks/import_equivalence.py kept of the originals."""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from torch import Tensor

from benchmarks.support import foreign_checkpoints
from benchmarks.support.imported import imported_outputs, some
from pipeline.checkpoint.importers import detect
from pipeline.checkpoint.importers.convert import Imported, Options

FIXTURES = Path(__file__).parent.parent / "fixtures" / "foreign"
CASES: dict[str, dict[str, Any]] = json.loads((FIXTURES / "cases.json").read_text())
TINY = "biggan-32-unshared"
_BUFFERS = ("u0", "sv0", "weight_u", "weight_v", "accumulation_counter", "num_batches_tracked")


def outputs(name: str) -> dict[str, Tensor]:
    """Some numbers of each output of the originals, by network and mode, such as `G eval`."""
    found = load_file(FIXTURES / "outputs.safetensors")
    return {key.partition("/")[2]: value for key, value in found.items() if key.startswith(f"{name}/")}


def outputs_of(name: str, imported: Imported, modes: Iterable[str]) -> dict[str, Tensor]:
    """The same numbers of networks of ours with the imported weights."""
    return {key: some(output) for key, output in imported_outputs(name, imported, modes).items()}


def states(name: str, *networks: str) -> dict[str, dict[str, Any]]:
    """The state_dict of each of `networks` (default: all that the case has), by G, G_ema and D."""
    shapes = CASES[name]["state"]
    return {n: foreign_checkpoints.state(n, shapes[n.removesuffix("_ema")]) for n in networks or shapes}


def moments(name: str) -> dict[str, dict[str, Any]]:
    """Adam's state of each network, as G_optim and D_optim; each moment is the parameter itself."""
    found = {}
    for network, tensors in states(name).items():
        trained = [
            t for key, t in tensors.items() if not key.endswith(_BUFFERS) and "stored_" not in key and "running_" not in key
        ]
        state = foreign_checkpoints.adam(network, {str(i): t.shape for i, t in enumerate(trained)})
        for place, tensor in enumerate(trained):
            state["state"][place] |= {"exp_avg": tensor, "exp_avg_sq": 2 * tensor}
        found[f"{network}_optim"] = state
    return found


def save(folder: Path, name: str, states: dict[str, dict[str, Any]]) -> str:
    """Write `states` as the case's project does; returns the folder."""
    return str(foreign_checkpoints.save(folder, CASES[name]["form"], states, CASES[name]["settings"]))


def read(src: Path | str, **options: Any) -> Imported:
    return detect.read(str(src), Options(**options), lambda line: None)


def refused(error: type[Exception], *parts: str) -> Any:
    """Expects `error` in one line that has all `parts`."""
    return pytest.raises(error, match=r"\A" + "".join(f"(?=.*{re.escape(part)})" for part in parts) + r".*\Z")
