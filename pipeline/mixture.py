"""Several sets, mixed by weight: which one stands at which position, as a pure function of (weights, seed, position).

Positions come in blocks. Of each block a part gets its exact share, rounded so that no error adds up; inside a block the
parts are shuffled. A part goes through epochs of its own, in its own order.
"""

from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache

import numpy as np

from pipeline.index import Manifest
from pipeline.order import Ints, Order, permutation

_BLOCK = 1024


class Mixture:
    """Stands where an `Order` does. Sample ids, runs and lanes count through the parts.

    Args:
        orders: of the parts.
        weights: of the parts, above 0; only their ratios matter. After any number of positions a part has had its share
            within a block's.
        seed: of the run.
    """

    def __init__(self, orders: Sequence[Order], weights: Sequence[float], seed: int) -> None:
        self.seed, self.orders = seed, tuple(orders)
        exact = [Fraction(weight) for weight in weights]
        self._shares = [weight / sum(exact) for weight in exact]
        # The others' shares are rounded down, and the largest takes up the slack: it always has enough.
        self._rest = self._shares.index(max(self._shares))
        self._block_size = max(_BLOCK, len(orders) ** 2)
        self._first = np.cumsum([0, *(order.samples for order in orders)])
        self.samples = int(self._first[-1])
        parts = zip(self._first.tolist(), self.orders, strict=False)
        self.starts: Ints = np.concatenate([*(first + order.starts[:-1] for first, order in parts), [self.samples]])
        """First sample of each run, and the number of samples at the end: [runs + 1]."""
        self._first_lane = np.cumsum([0, *(order.lane_count + 1 for order in orders)])
        self.lane_count = int(self._first_lane[-1])
        self._block = lru_cache(maxsize=8)(self._shuffled_block)

    def batch(self, position: int, size: int) -> tuple[Ints, Ints]:
        """(epochs, samples), each int64 [size]: as `Order.batch`, an epoch being that of the sample's part."""
        return self.at(np.arange(position, position + size, dtype=np.int64))

    def at(self, positions: Ints) -> tuple[Ints, Ints]:
        """(epochs, samples), each int64 [n], of positions [n] near each other."""
        lowest = int(positions.min())
        parts, before = self._parts(lowest, int(positions.max()) + 1 - lowest)
        epochs, samples = np.empty(len(positions), np.int64), np.empty(len(positions), np.int64)
        for part, order in enumerate(self.orders):
            within = before[part] + np.cumsum(parts == part) - 1  # of the part's own positions
            chosen = parts[positions - lowest] == part
            epochs[chosen], found = order.at(within[positions - lowest][chosen])
            samples[chosen] = self._first[part] + found
        return epochs, samples

    def lanes(self, position: int, size: int) -> Ints:
        """Lane of each of these positions, int64 [size]."""
        parts, before = self._parts(position, size)
        lanes = np.empty(size, np.int64)
        for part, order in enumerate(self.orders):
            chosen = parts == part
            lanes[chosen] = self._first_lane[part] + order.lanes(before[part], int(chosen.sum()))
        return lanes

    def run_of(self, samples: Ints) -> Ints:
        """The run that holds each sample."""
        return np.searchsorted(self.starts, samples, side="right") - 1

    def _parts(self, position: int, size: int) -> tuple[Ints, list[int]]:
        """The part at each position, [size], and how many positions each part has had before the first of them."""
        first, last = position // self._block_size, (position + size - 1) // self._block_size
        skipped = position - first * self._block_size
        parts = np.concatenate([self._block(block) for block in range(first, last + 1)])
        head = np.bincount(parts[:skipped], minlength=len(self.orders))
        return parts[skipped : skipped + size], [a + int(b) for a, b in zip(self._before(first), head, strict=True)]

    def _before(self, block: int) -> list[int]:
        """Positions that each part has had before a block."""
        counts = [block * self._block_size * share // 1 for share in self._shares]
        counts[self._rest] += block * self._block_size - sum(counts)
        return [int(count) for count in counts]

    def _shuffled_block(self, block: int) -> Ints:
        counts = np.array(self._before(block + 1)) - np.array(self._before(block))
        parts = np.repeat(np.arange(len(self.orders)), counts)
        return parts[permutation(len(parts), self.seed, (block, 1 << 63, 0))]


def make_order(manifest: Manifest, seed: int, lanes: int) -> Order | Mixture:
    """The order of training on `manifest`."""
    if not manifest.parts:
        return Order(manifest.shards, seed, lanes)
    ends = np.cumsum([part.shards for part in manifest.parts]).tolist()
    orders = [
        Order(manifest.shards[end - part.shards : end], seed, lanes) for end, part in zip(ends, manifest.parts, strict=True)
    ]
    return Mixture(orders, [part.weight for part in manifest.parts], seed)
