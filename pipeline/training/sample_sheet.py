"""A sheet of samples of the averaged generator, as it is in the middle of a training."""

import torch
from torch import Tensor

from model.sampling import generate, grid
from pipeline.generation.load import ema_generator
from pipeline.tracking.tracker import Tracker
from pipeline.training.train_state import TrainState

ROWS, MOST_COLUMNS = 8, 10


def record_sheet(tracker: Tracker, state: TrainState, averages: dict[str, Tensor], images: int) -> Tensor:
    """Draw a sheet at `images` and track it: classes (at most 10) as columns, always of the same latents.

    Returns it, uint8 [8, columns, C, r, r].
    """
    config = state.config
    columns = min(MOST_COLUMNS, config.model.num_classes)
    labels = torch.arange(columns).repeat(ROWS)
    # Fewer standing samples than the finished generator gets: this is a look, on the training's time.
    buffers = dict(state.g.module.named_buffers())
    copy = ema_generator(config.model, buffers, averages, state.ranks.device, samples=512)
    sheet = generate(copy, labels, seed=config.seed)
    tracker.image(grid(sheet, columns).numpy(), "samples/ema", images)
    return sheet.unflatten(0, (ROWS, columns))
