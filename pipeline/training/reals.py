"""The real images that D learns from: micro-batches of the data loader, on the device."""

from typing import Self

import torch

from pipeline.data.loader import DataLoader, MicroBatch
from pipeline.engine.objective import Pair
from pipeline.images.floats import to_floats
from pipeline.training.recorder import Recorder


class Reals:
    """Endless iterator of what `on_device` returns; waiting for it is the part `data` of the run's time."""

    # No generator: that would keep its last micro-batch on the device during the G step.
    def __init__(self, loader: DataLoader, device: torch.device, recorder: Recorder):
        self._loader, self._device, self._recorder = loader, device, recorder

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Pair:
        with self._recorder.timed("data"):
            batch = next(self._loader)
        return on_device(batch, self._device)


def on_device(batch: MicroBatch, device: torch.device) -> Pair:
    """Return images x [m, C, r, r] in -1..1, mirrored where the loader says so, and labels y [m]."""
    images, flips, labels = (t.to(device, non_blocking=True) for t in (batch.images, batch.flips, batch.labels))
    return to_floats(images, flips), labels
