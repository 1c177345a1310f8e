"""User transforms for the tests: imported by name, in processes of their own."""

import numpy as np
from PIL import Image, ImageChops


def shifted(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    return ImageChops.offset(image, int(rng.integers(1, image.width)), 0)


def broken(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    raise ZeroDivisionError("oops")
