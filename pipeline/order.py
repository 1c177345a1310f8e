"""The order of training: which sample stands at which position, as a pure function of (manifest, seed, position).

A *run* is a contiguous slice of a shard that is read at once. An epoch permutes the runs, lays them end to end and cuts
that sequence into V equal lanes; position g of the epoch belongs to lane g mod V, so every batch draws from
all over the data, while each lane walks its runs one window at a time. Inside a window the samples are permuted. What
is left over by the division comes last. Every sample once per epoch; epochs follow each other without a gap, so a batch
may hold the end of one and the beginning of the next.

Nothing here knows ranks or workers. Memory is O(runs) plus a few windows per lane.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from pipeline.index import Shard

# These define the order: another value is another order, and a resumed run would see other images.
LANES = 48  # many divisors, so that ranks share the lanes without reading runs twice
WINDOW = 8  # runs that a lane mixes at a time
MAX_RUN_BYTES = 1 << 20  # with the two above, 384 MiB are open at a time for the whole job
MIN_RUN_BYTES = 1 << 16
MAX_RUNS = 1 << 21  # of one set: above 2 TiB, runs grow instead

Ints = NDArray[np.int64]


class Order:
    """Positions (samples consumed since the start of training) to samples.

    Args:
        shards: as in the manifest; only their sample counts and sizes matter.
        seed: of the run.
        lanes: V. Part of the order, as the seed is.
    """

    def __init__(self, shards: Sequence[Shard], seed: int, lanes: int = LANES) -> None:
        self.seed, self.lane_count = seed, lanes
        self.starts: Ints = _run_starts(shards)
        """First sample of each run, and the number of samples at the end: [runs + 1]."""
        self.samples = int(self.starts[-1])
        self._lane_length = self.samples // lanes
        self._window = WINDOW * -(-self.samples // (len(self.starts) - 1))
        self._runs = lru_cache(maxsize=2)(self._permuted_runs)  # two epochs, for the batch that holds both
        self._shuffles = lru_cache(maxsize=4 * lanes)(self._window_shuffle)

    def batch(self, position: int, size: int) -> tuple[Ints, Ints]:
        """(epochs, samples), each int64 [size], of the positions [position, position + size)."""
        return self.at(np.arange(position, position + size, dtype=np.int64))

    def at(self, positions: Ints) -> tuple[Ints, Ints]:
        """(epochs, samples), each int64 [n], of any positions [n]; only the windows that they lie in are shuffled."""
        epochs, places = np.divmod(positions, self.samples)
        samples = np.empty(len(positions), np.int64)
        for epoch in np.unique(epochs):
            chosen = epochs == epoch
            samples[chosen] = self._at(int(epoch), places[chosen])
        return epochs, samples

    def lanes(self, position: int, size: int) -> Ints:
        """Lane of each of these positions, int64 [size]; `lane_count` for an epoch's remainder."""
        return self._lane(np.arange(position, position + size, dtype=np.int64) % self.samples)

    def run_of(self, samples: Ints) -> Ints:
        """The run that holds each sample."""
        return np.searchsorted(self.starts, samples, side="right") - 1

    def _lane(self, places: Ints) -> Ints:
        return np.where(places < self.lane_count * self._lane_length, places % self.lane_count, self.lane_count)

    def _at(self, epoch: int, places: Ints) -> Ints:
        """Samples at `places` (each in [0, samples)) of one epoch."""
        lane = self._lane(places)
        rest = self.lane_count * self._lane_length
        step = np.where(lane == self.lane_count, places - rest, places // self.lane_count)
        window = (step + self._window - self._phase(lane)) // self._window
        virtual = np.empty_like(places)  # place in the runs, laid end to end
        together = lane * (self._lane_length + 2) + window  # a number for each window of each lane
        grouped = np.argsort(together, kind="stable")
        for chosen in np.split(grouped, np.flatnonzero(np.diff(together[grouped])) + 1):
            this_lane = int(lane[chosen[0]])
            first, shuffle = self._shuffles(epoch, this_lane, int(window[chosen[0]]))
            virtual[chosen] = this_lane * self._lane_length + first + shuffle[step[chosen] - first]
        ends, shift = self._runs(epoch)
        return virtual + shift[np.searchsorted(ends, virtual, side="right")]

    def _phase(self, lane: Ints) -> Ints:
        """Steps in a lane's first window: another number for each, or all lanes would want new runs at once."""
        return self._window * (lane + 1) // (self.lane_count + 1)

    def _window_shuffle(self, epoch: int, lane: int, window: int) -> tuple[int, NDArray[np.int32]]:
        """First step of a lane's window, and the permutation of its steps."""
        steps = self._lane_length if lane < self.lane_count else self.samples - self.lane_count * self._lane_length
        end = int(self._phase(np.array(lane))) + window * self._window
        first, end = max(0, end - self._window), min(steps, end)
        return first, permutation(end - first, self.seed, (epoch, 1 + lane, window)).astype(np.int32)

    def _permuted_runs(self, epoch: int) -> tuple[Ints, Ints]:
        """(where each run ends in the epoch's sequence, what to add to a place in it to get the sample)."""
        order = permutation(len(self.starts) - 1, self.seed, (epoch, 0, 0))
        ends = np.cumsum(np.diff(self.starts)[order])
        return ends, self.starts[1:][order] - ends


def flips(seed: int, epochs: Ints, samples: Ints) -> NDArray[np.bool_]:
    """Whether each sample is mirrored in its epoch, bool [n]: every second one, by (seed, epoch, sample) alone."""
    with np.errstate(over="ignore"):
        mixed = np.full(len(samples), seed, np.uint64)
        for key in (epochs, samples):
            mixed = _mix(_mix(mixed) + key.astype(np.uint64))
    return (mixed >> np.uint64(63)).astype(np.bool_)


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of SplitMix64 (Steele, Lea, Flood 2014): each input bit flips half of the output bits."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def permutation(n: int, seed: int, counter: tuple[int, int, int]) -> Ints:
    """A permutation of n, [n], by (seed, counter) alone."""
    # By sorting raw Philox words: NumPy promises those for good, while `Generator.permutation` may change between
    # versions and would change the order under a run that is resumed.
    generator = np.random.Philox(key=seed, counter=np.array([0, *counter], np.uint64))
    return np.argsort(generator.random_raw(n), kind="stable")


def _run_starts(shards: Sequence[Shard]) -> Ints:
    """First sample of each run, and the end: [runs + 1]. From the shards' sizes alone, so that an order needs no index."""
    samples = np.fromiter((shard.samples for shard in shards), np.int64, len(shards))
    sizes = np.fromiter((shard.bytes for shard in shards), np.int64, len(shards))
    total = int(sizes.sum())
    # About a thousand runs for a small set (or the windows would hold all of it), and never so many that they fill memory.
    run_bytes = max(MIN_RUN_BYTES, min(MAX_RUN_BYTES, total >> 10), total // MAX_RUNS)
    runs = np.minimum(samples, np.maximum(1, sizes // run_bytes))
    ends = np.cumsum(runs)
    within = np.arange(ends[-1]) - np.repeat(ends - runs, runs)
    starts = np.repeat(np.cumsum(samples) - samples, runs) + within * np.repeat(samples, runs) // np.repeat(runs, runs)
    return np.append(starts, samples.sum())
