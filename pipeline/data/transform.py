"""A user's own transform of images, by name. Runs in worker processes, so nothing here imports torch.

A transform takes an upright PIL image (mode L or RGB) and a NumPy generator that is a function of (seed, epoch, sample),
and returns a PIL image, which is then cropped and resampled to the training's size if it has another. `data.crop` comes before.
"""

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from pipeline import child_imports
from pipeline.data.decode import Pixels, cropped, fitted, upright
from pipeline.errors import ConfigError

Transform = Callable[[Image.Image, np.random.Generator], Image.Image]


def find_transform(name: str) -> Transform:
    """The function `package.module:function`. Raises ConfigError if there is none."""
    module, _, function = name.partition(":")
    child_imports.from_here()
    try:
        found: Any = getattr(importlib.import_module(module), function)
    except Exception as error:  # the user's own code may raise anything
        what = (
            str(error) if isinstance(error, ImportError | AttributeError | ValueError) else f"{type(error).__name__}: {error}"
        )
        where = "of an installed package, or of a file below this folder"
        raise ConfigError(f"data.transform={name}: {what}; set data.transform=PACKAGE.MODULE:FUNCTION, {where}") from None
    return found


def transformed(name: str, data: bytes, key: tuple[int, ...], shape: tuple[int, int, int], crop: int | None) -> Pixels:
    """An encoded image: decoded, cropped, transformed by the function `name` under a generator with this key, fitted."""
    image = cropped(upright(data), crop)
    transform = find_transform(name)
    try:
        image = transform(image, np.random.default_rng(key))
        image = fitted(image.convert("L" if shape[2] == 1 else "RGB"), shape[0])
    except Exception as error:
        raise ConfigError(f"data.transform={name} failed on sample {key[2]}: {type(error).__name__}: {error}") from error
    return np.asarray(image).reshape(shape)
