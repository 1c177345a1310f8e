"""torch-fidelity, the reference for figures, from a folder of its own: it brings a package `tests`, and imports torchvision.

That it imports for data sets that are not used here: where it is not installed, empty modules stand in.
"""

import importlib
import importlib.util
import sys
import types
from pathlib import Path
from typing import Any

import pytest

PLACE = Path(sys.prefix, "share", "torch-fidelity")


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
