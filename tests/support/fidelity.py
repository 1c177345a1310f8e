"""torch-fidelity, the reference for figures, from a folder of its own: it brings a package `tests`, and imports torchvision.

That it imports for data sets that are not used here: where it is not installed, empty modules stand in.
"""

import importlib
import importlib.util
import json
import os
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest

PLACE = Path(sys.prefix, "share", "torch-fidelity")

_STAND_INS = {
    "torchvision/__init__.py": "from torchvision import transforms\n",
    "torchvision/datasets.py": "CIFAR10 = CIFAR100 = STL10 = object\n",
    "torchvision/transforms/__init__.py": "def Compose(steps): step, = steps; return step\n",
    "torchvision/transforms/functional.py": "import numpy, torch\n"
    "def pil_to_tensor(image): return torch.as_tensor(numpy.array(image)).permute(2, 0, 1)\n",
}
"""All of torchvision that its command needs for folders of PNG files."""


def command(folder: Path, *argv: str) -> dict[str, float]:
    """What its own command prints as JSON; `folder` is for the stand-ins and its cache. Skips likewise."""
    if not PLACE.exists():
        pytest.skip("`make fidelity` installs torch-fidelity")
    place = str(PLACE)
    if importlib.util.find_spec("torchvision") is None:
        for name, text in _STAND_INS.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text)
        place = f"{folder}{os.pathsep}{place}"
    done = subprocess.run(
        [sys.executable, "-m", "torch_fidelity.fidelity", "--cpu", "--json", "--silent", "--no-cache", *argv],
        env=os.environ | {"PYTHONPATH": place},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def fidelity(name: str) -> Any:
    """The module torch_fidelity.NAME. Skips where torch-fidelity is not installed."""
    if not PLACE.exists():
        pytest.skip("`make fidelity` installs torch-fidelity")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [*sys.path, str(PLACE)])
        if importlib.util.find_spec("torchvision") is None:
            for missing in (
                "torchvision",
                "torchvision.datasets",
                "torchvision.transforms",
                "torchvision.transforms.functional",
            ):
                stub: Any = types.ModuleType(missing)
                stub.CIFAR10 = stub.CIFAR100 = stub.STL10 = object
                patch.setitem(sys.modules, missing, stub)
                parent, _, child = missing.rpartition(".")
                if parent:
                    setattr(sys.modules[parent], child, stub)
        return importlib.import_module(f"torch_fidelity.{name}")
