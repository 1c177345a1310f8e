"""torch-fidelity, the reference for figures. It imports torchvision for data sets that are not used here: a stub stands in."""

import importlib
import importlib.util
import sys
import types
from typing import Any

import pytest


def fidelity(name: str) -> Any:
    """The module torch_fidelity.NAME. Skips where torch-fidelity is not installed (`make fidelity`)."""
    if importlib.util.find_spec("torch_fidelity") is None:
        pytest.skip("`make fidelity` installs torch-fidelity")
    names = ("torchvision", "torchvision.datasets", "torchvision.transforms", "torchvision.transforms.functional")
    stubs = {} if importlib.util.find_spec("torchvision") else {name: types.ModuleType(name) for name in names}
    for stub in stubs.values():
        stub.__dict__.update(dict.fromkeys(("CIFAR10", "CIFAR100", "STL10"), object))
    for name_of, stub in stubs.items():
        parent, _, child = name_of.rpartition(".")
        if parent:
            setattr(stubs[parent], child, stub)
    with pytest.MonkeyPatch.context() as patch:
        for name_of, stub in stubs.items():
            patch.setitem(sys.modules, name_of, stub)
        return importlib.import_module(f"torch_fidelity.{name}")
