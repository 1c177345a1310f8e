"""Which samples a rank takes: global batches cut into micro-batches, in a way that no number of ranks can change.

Global batch t holds the positions [t * B, (t + 1) * B), sorted by lane; rank r's micro-step a takes its slice
[a * W * m + r * m, + m). So neither W nor m changes what a global batch holds, or which samples stand side by side.
"""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from pipeline.data.mixture import Mixture
from pipeline.data.order import WINDOW, Ints, Order, open_runs
from pipeline.errors import ConfigError

_TOGETHER = 1024
"""Positions that a rank looks up at a time: an order's cost is that of the lanes that are touched, however often each is."""


@dataclass(frozen=True)
class SamplePlan:
    """One micro-batch: int64 [m] each, side by side in the batch."""

    samples: Ints
    epochs: Ints
    positions: Ints
    """Samples consumed before each one, since the start of training."""


@dataclass(frozen=True)
class RankSampler:
    """One rank's part of every global batch. Raises ConfigError if the batch cannot be shared so."""

    global_batch: int
    micro_batch: int
    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        together = self.micro_batch * self.world_size
        if self.global_batch % together:
            raise ConfigError(
                f"a global batch of {self.global_batch} cannot be shared by {self.world_size} ranks in micro-batches of "
                f"{self.micro_batch}: it must be a multiple of {together}"
            )

    def plans(self, order: Order | Mixture, position: int) -> Iterator[SamplePlan]:
        """This rank's micro-batches from `position` on, without end."""
        batches = max(1, _TOGETHER * self.world_size // self.global_batch)
        for start in itertools.count(position, batches * self.global_batch):
            lanes = order.lanes(start, batches * self.global_batch).reshape(batches, self.global_batch)
            by_lane = np.argsort(lanes, axis=1, kind="stable").reshape(batches, -1, self.world_size, self.micro_batch)
            starts = start + self.global_batch * np.arange(batches)
            positions = (starts[:, None, None] + by_lane[:, :, self.rank]).reshape(-1)
            epochs, samples = order.at(positions)
            for i in range(0, len(positions), self.micro_batch):
                micro_batch = slice(i, i + self.micro_batch)
                yield SamplePlan(samples[micro_batch], epochs[micro_batch], positions[micro_batch])

    def amplification(self, order: Order | Mixture) -> float:
        """Bytes that all ranks read for each byte of the data; 1 where every lane stays with one rank."""
        return order.amplification(self.global_batch, self.micro_batch, self.world_size)

    def open_runs(self, order: Order | Mixture, ahead: int) -> int:
        """Runs that this rank draws from at a time: a window (and what it cuts) in each of its lanes, and those of the next
        `ahead` micro-batches."""
        parts = len(order.orders) if isinstance(order, Mixture) else 1
        now = parts * open_runs(order.lane_count, self.global_batch, self.micro_batch, self.world_size)
        window = WINDOW * -(-order.samples // (len(order.starts) - 1))
        new = min(1.0, ahead * self.micro_batch * self.world_size / order.lane_count / window)
        return now + math.ceil(now * new)
