"""The pictures that the loaders are compared on: synthetic, photo-like in what a decoder feels, the same on every machine."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

SIZE = 256
CLASSES = 10


def jpeg(number: int) -> bytes:
    """Return picture `number` as a baseline JPEG, 256 x 256, quality 80, 4:2:0: 20 kB in the mean, like a photo of that size.

    Its amplitudes fall with the frequency, as those of natural images do; white noise adds the grain. Grain and contrast
    vary from picture to picture.
    """
    rng = np.random.default_rng(number)
    frequency = np.hypot(np.fft.fftfreq(SIZE)[:, None], np.fft.rfftfreq(SIZE)[None])
    frequency[0, 0] = np.inf  # no constant part: it is added below
    grey, *colours = (np.fft.irfft2(np.fft.rfft2(rng.standard_normal((SIZE, SIZE))) / frequency**1.25) for _ in range(4))
    picture = np.stack([grey / grey.std() + 0.3 * colour / colour.std() for colour in colours], axis=2)
    picture = 128 + rng.uniform(15, 60) * picture + rng.uniform(1, 10) * rng.standard_normal((SIZE, SIZE, 1))
    out = io.BytesIO()
    Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(out, "JPEG", quality=80)
    return out.getvalue()


def make_images(folder: Path, count: int) -> None:
    """Write `count` pictures as folder/classK/NNNNNN.jpg; keep those that exist."""
    for label in range(CLASSES):
        (folder / f"class{label}").mkdir(parents=True, exist_ok=True)
    for number in range(count):
        path = folder / f"class{number % CLASSES}" / f"{number:06d}.jpg"
        if not path.exists():
            path.with_suffix(".tmp").write_bytes(jpeg(number))
            path.with_suffix(".tmp").replace(path)


def image_files(folder: Path) -> list[tuple[Path, int]]:
    """Return (file, label) of every picture, by number."""
    return sorted(((path, int(path.parent.name[5:])) for path in folder.glob("class*/*.jpg")), key=lambda item: item[0].name)
