"""What D learns from: the loader's pixels on the device."""

import torch

from pipeline.data.loader import MicroBatch
from pipeline.training.reals import on_device


def test_pixels_become_minus_one_to_one_and_mirrored_ones_are_mirrored() -> None:
    pixels = torch.tensor([0, 51, 255], dtype=torch.uint8).expand(2, 1, 1, 3)
    numbers = torch.arange(2)
    x, y = on_device(
        MicroBatch(
            images=pixels,
            labels=numbers + 5,
            samples=numbers,
            epochs=numbers,
            positions=numbers,
            flips=torch.tensor([False, True]),
            valid=numbers > -1,
        ),
        torch.device("cpu"),
    )
    torch.testing.assert_close(x[:, 0, 0], torch.tensor([[-1.0, -0.6, 1.0], [1.0, -0.6, -1.0]]))
    assert y.tolist() == [5, 6]
