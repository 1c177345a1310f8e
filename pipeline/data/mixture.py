"""Several data sets as one order: which part stands at which position, as a pure function of (seed, weights, position).

Position g belongs to lane g mod lanes, as in an order. Each lane deals its positions, its *rows*, out to the parts in
exact proportion; the row that is the n-th of a part in lane l takes position n * lanes + l of that part's own order. So
every position of every part is taken once, each part runs through its own epochs, and the ranks that share the lanes of
a mixture share the lanes of its parts: no run is read by more of them than without the mixture.

The lanes are out of step with each other, by a permutation of the lanes that the seed gives. With two parts every row of
the lanes together has its exact share (rounded to a whole sample); with more, see `Mixture`.
"""

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from itertools import accumulate, pairwise

import numpy as np

from pipeline.data.manifest import Manifest
from pipeline.data.order import Ints, Order, OrderRule, permutation
from pipeline.errors import ConfigError

_DENOMINATOR = 1 << 23  # of the shares: with MAX_LANES, products stay in 64 bits
_COUNTER = (1 << 64) - 1  # a window that no order reaches, so that nothing is drawn twice from (seed, counter)


class Mixture:
    """Positions to samples of several parts, each of which is seen once in each of its own epochs.

    Sample ids, and runs, of a part follow those of the parts before it; epochs are those of the part. Everything else is
    as in `Order`, and a mixture of one part is that part.

    Of the first g positions, part i has had g times its share, to within lanes * (parts - 1) positions. The shares are
    the weights to within 1 in 2^23. So with weights that are the parts' sizes, one epoch of the whole, however large, is
    one of every part but for some lanes * parts samples.

    Args:
        orders: of the parts, all with the same number of lanes. Give each a seed of its own (`part_seed`).
        weights: of the parts, in any unit: numbers above 0.
        seed: of the run.

    Raises ConfigError if a weight or the lanes do not fit.
    """

    def __init__(self, orders: Sequence[Order], weights: Sequence[float], seed: int) -> None:
        lanes = {order.lane_count for order in orders}
        if len(lanes) != 1:
            raise ConfigError(f"the parts of a mixture must have the same number of lanes, not {sorted(lanes)}")
        self.seed = seed
        self.lane_count = lanes.pop()
        self.orders = tuple(orders)
        self.shares = _shares(weights, len(orders))
        """Of all positions, as exact fractions."""
        self.firsts: Ints = np.cumsum([0, *(order.samples for order in orders)], dtype=np.int64)
        """First sample id of each part, and the number of samples at the end: [parts + 1]."""
        self.samples = int(self.firsts[-1])
        starts = [order.starts[:-1] + first for order, first in zip(orders, self.firsts[:-1], strict=True)]
        self.starts: Ints = np.append(np.concatenate(starts), self.samples) if len(orders) > 1 else orders[0].starts
        """First sample of each run of all parts, and the number of samples at the end: [runs + 1]."""
        # For each part but the first: which share of the rows of the parts up to it falls to those before it.
        self._before = [before / upto for before, upto in _pairs(list(accumulate(self.shares)))]
        self._offsets = [permutation(self.lane_count, seed, (i, _COUNTER, _COUNTER)) for i in range(1, len(orders))]

    def batch(self, position: int, size: int) -> tuple[Ints, Ints]:
        """(epochs, samples), each int64 [size], of the positions [position, position + size)."""
        return self.at(np.arange(position, position + size, dtype=np.int64))

    def at(self, positions: Ints) -> tuple[Ints, Ints]:
        """(epochs, samples), each int64 [n], of any positions, int64 [n]: the cost is that of the lanes they touch."""
        parts, places = self.parts(positions)
        epochs, samples = np.empty_like(positions), np.empty_like(positions)
        for part, order in enumerate(self.orders):
            chosen = parts == part
            epochs[chosen], samples[chosen] = order.at(places[chosen])
        return epochs, samples + self.firsts[parts]

    def parts(self, positions: Ints) -> tuple[Ints, Ints]:
        """(part, position in that part's order), each int64 [n], of any positions, int64 [n]."""
        row, lane = np.divmod(positions, self.lane_count)
        part = np.zeros_like(positions)
        # From the last part down: `row` counts the rows of a lane that fall to the parts up to this one.
        left = np.arange(len(positions))
        for i in range(len(self.orders) - 1, 0, -1):
            earlier, later = (self._rows_before(i, row[left] + ahead, lane[left]) for ahead in (0, 1))
            mine = earlier == later
            part[left[mine]] = i
            row[left] = np.where(mine, row[left] - earlier, earlier)
            left = left[~mine]
        return part, row * self.lane_count + lane

    def lanes(self, position: int, size: int) -> Ints:
        """Lane of each of the positions [position, position + size), int64 [size]."""
        if len(self.orders) == 1:
            return self.orders[0].lanes(position, size)
        return np.arange(position, position + size, dtype=np.int64) % self.lane_count

    def run_of(self, samples: Ints) -> Ints:
        """The run that holds each sample."""
        return np.searchsorted(self.starts, samples, side="right") - 1

    def part_of(self, samples: Ints) -> Ints:
        """The part that holds each sample."""
        return np.searchsorted(self.firsts, samples, side="right") - 1

    def amplification(self, batch: int, micro_batch: int, world_size: int) -> float:
        """As of `Order`, for each byte that the mixture draws, if the parts' samples are equally large."""
        each = [order.amplification(batch, micro_batch, world_size) for order in self.orders]
        return sum(float(share) * one for share, one in zip(self.shares, each, strict=True))

    def _rows_before(self, part: int, rows: Ints, lane: Ints) -> Ints:
        """Of the first `rows` of a lane that fall to the parts up to `part`, how many fall to those before it.

        floor(rows * share + offset), whose sum over the lanes is floor(lanes * rows * share), for the offsets are
        0 / lanes, 1 / lanes ... in another order. It grows by 0 or 1 per row.
        """
        share = self._before[part - 1]
        whole, rest = np.divmod(rows, share.denominator)
        offset = self._offsets[part - 1][lane] * share.denominator
        return whole * share.numerator + (rest * (share.numerator * self.lane_count) + offset) // (
            share.denominator * self.lane_count
        )


def part_seed(seed: int, part: int) -> int:
    """Seed of a part's order: the run's own for the first, others that have nothing in common with it for the rest."""
    if part == 0:
        return seed
    return int(np.random.Philox(key=seed, counter=np.array([0, part, _COUNTER, 0], np.uint64)).random_raw())


def _shares(weights: Sequence[float], parts: int) -> list[Fraction]:
    """Shares of all rows, with a sum of 1, such that each quotient of sums of them has a small denominator."""
    if len(weights) != parts or not all(0 < weight < float("inf") for weight in weights):
        raise ConfigError(f"weights of a mixture of {parts} parts: one number above 0 for each, not {list(weights)}")
    shares, rest = [], Fraction(1)
    for before, upto in reversed(_pairs(list(accumulate(Fraction(weight) for weight in weights)))):
        quotient = (before / upto).limit_denominator(_DENOMINATOR)
        if quotient in (0, 1):
            raise ConfigError(f"weights {list(weights)}: the smallest is nothing beside the others; leave that part out")
        shares.append(rest * (1 - quotient))
        rest *= quotient
    return [rest, *reversed(shares)]


def _pairs(sums: list[Fraction]) -> list[tuple[Fraction, Fraction]]:
    return list(pairwise(sums))


def make_order(manifest: Manifest, rule: OrderRule) -> Order | Mixture:
    """Return the order of training on `manifest`. Of a mixture, rollbacks change the parts' orders, not which part is where."""
    if not manifest.parts:
        return rule.of(manifest.shards)
    ends = list(accumulate(part.shards for part in manifest.parts))
    orders = [
        replace(rule, seed=part_seed(rule.seed, i)).of(manifest.shards[end - part.shards : end])
        for i, (end, part) in enumerate(zip(ends, manifest.parts, strict=True))
    ]
    return Mixture(orders, [part.weight for part in manifest.parts], rule.seed)
