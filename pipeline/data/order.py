"""The order of training: which sample stands where, as a pure function of (manifest, seed, lanes, rollbacks, position).

A *run* is a contiguous slice of a shard that is read at once. An epoch permutes the runs, lays them end to end and cuts
that sequence into equal *lanes*; position g of the epoch belongs to lane g mod lanes, so every batch draws from all over
the data, while each lane walks its runs one window at a time. Inside a window the samples are permuted. What is left
over by the division comes last. Every sample once per epoch; epochs follow each other without a gap, so a batch may hold
the end of one and the beginning of the next.

Nothing here knows ranks or workers, but `sharing`, which says what a number of lanes costs them. Memory is O(runs), for
which large sets have larger runs, plus one window for each lane that is asked for.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.data.manifest import Shard
from pipeline.errors import ConfigError

# These define the order, as the number of lanes does: another value is another order, and a resumed run would see other
# images.
# By default: batches and ranks are mostly powers of two, of which 64 lanes read 1.15 times the data on average, 48 read 1.9
# times; of multiples of 48 they read 1.4 times, either of them. Means over 8 to 64 and all of a rank's share as micro-batch.
LANES = 64
WINDOW = 8  # runs that a lane mixes at a time
MAX_RUN_BYTES = 1 << 20  # with the two above, 512 MiB are open at a time for the whole job
MIN_RUN_BYTES = 1 << 16
MAX_RUNS = 1 << 21  # goes before MAX_RUN_BYTES: a plan of 100 TB stays below 200 MB, with runs of 50 MB

MAX_LANES = 1 << 16  # far above any cluster; `pipeline.data.mixture` counts on it

Ints = NDArray[np.int64]


class Order:
    """Positions (samples consumed since the start of training) to samples.

    Args:
        shards: as in the manifest; only their sample counts and sizes matter.
        seed: of the run.
        lanes: see above. `lanes_for` says which number lets each run be read by one rank only.
        rollbacks: how often the run has gone back because it went bad; each number is another order.

    Raises ConfigError if there are no samples, or if `lanes` is out of range.
    """

    def __init__(self, shards: Sequence[Shard], seed: int, lanes: int = LANES, rollbacks: int = 0) -> None:
        if not 1 <= lanes <= MAX_LANES:
            raise ConfigError(f"data.lanes={lanes}: must be from 1 to {MAX_LANES}")
        self.seed = seed
        self._key = seed + (rollbacks << 64)  # the two words of a Philox key
        self.lane_count = lanes
        self.starts: Ints = _run_starts(shards)
        """First sample of each run, and the number of samples at the end: [runs + 1]."""
        self.samples = int(self.starts[-1])
        if self.samples == 0:
            raise ConfigError("the data set holds no samples: set data.uri=URI to shards with images, or that part of data.mix")
        self._lane_length = self.samples // lanes
        self._window = WINDOW * -(-self.samples // (len(self.starts) - 1))
        self._runs = lru_cache(maxsize=2)(self._permuted_runs)  # two epochs, for the batch that holds both
        self._shuffles = lru_cache(maxsize=2 * (lanes + 1))(self._window_shuffle)

    def batch(self, position: int, size: int) -> tuple[Ints, Ints]:
        """(epochs, samples), each int64 [size], of the positions [position, position + size)."""
        return self.at(np.arange(position, position + size, dtype=np.int64))

    def at(self, positions: Ints) -> tuple[Ints, Ints]:
        """(epochs, samples), each int64 [n], of any positions, int64 [n]: the cost is that of the lanes they touch."""
        epochs, places = np.divmod(positions, self.samples)
        samples = np.empty_like(places)
        for epoch in np.unique(epochs).tolist():
            chosen = epochs == epoch
            samples[chosen] = self._of_epoch(epoch, places[chosen])
        return epochs, samples

    def lanes(self, position: int, size: int) -> Ints:
        """Lane of each of the positions [position, position + size), int64 [size]; `lane_count` for an epoch's remainder."""
        return self._lane(np.arange(position, position + size, dtype=np.int64) % self.samples)

    def run_of(self, samples: Ints) -> Ints:
        """The run that holds each sample."""
        return np.searchsorted(self.starts, samples, side="right") - 1

    def amplification(self, batch: int, micro_batch: int, world_size: int) -> float:
        """Expected bytes read by all ranks for each byte of the data, per epoch; see `sharing`."""
        _, lanes, shares = sharing(self.lane_count, batch, micro_batch, world_size)
        # A rank that draws a share of a lane's samples reads a run unless none of the run's samples falls to it.
        reads = 1 - (1 - shares) ** (self.samples / (len(self.starts) - 1))
        return float(reads.sum()) / len(np.unique(lanes))

    def _lane(self, places: Ints) -> Ints:
        return np.where(places < self.lane_count * self._lane_length, places % self.lane_count, self.lane_count)

    def _of_epoch(self, epoch: int, places: Ints) -> Ints:
        """Samples at `places` (each in [0, samples)) of one epoch."""
        lane = self._lane(places)
        rest = places - self.lane_count * self._lane_length
        step = np.where(lane == self.lane_count, rest, places // self.lane_count)
        window = (step + self._window - self._phase(lane)) // self._window
        virtual = np.empty_like(places)  # place in the runs, laid end to end
        for chosen in _groups(lane * (self._lane_length + 2) + window):  # a lane has fewer windows than that
            this_lane, this_window = int(lane[chosen[0]]), int(window[chosen[0]])
            first, shuffle = self._shuffles(epoch, this_lane, this_window)
            virtual[chosen] = shuffle[step[chosen] - first]
            virtual[chosen] += this_lane * self._lane_length + first
        runs, ends = self._runs(epoch)
        at = np.searchsorted(ends, virtual.astype(ends.dtype), side="right")  # of another dtype, `ends` would be copied
        return self.starts[runs[at].astype(np.int64) + 1] - ends[at].astype(np.int64) + virtual

    def _phase(self, lane: Ints) -> Ints:
        """Steps in a lane's first window: another number for each, or all lanes would want new runs at once."""
        return self._window * (lane + 1) // (self.lane_count + 1)

    def _window_shuffle(self, epoch: int, lane: int, window: int) -> tuple[int, NDArray[Any]]:
        """First step of a lane's window, and the permutation of its steps."""
        steps = self._lane_length if lane < self.lane_count else self.samples - self.lane_count * self._lane_length
        end = int(self._phase(np.array(lane))) + window * self._window
        first, end = max(0, end - self._window), min(steps, end)
        return first, _small(permutation(end - first, self._key, (epoch, 1 + lane, window)), end - first)

    def _permuted_runs(self, epoch: int) -> tuple[NDArray[Any], NDArray[Any]]:
        """(runs in the epoch's sequence, where each of them ends in it)."""
        count = len(self.starts) - 1
        runs = _small(permutation(count, self._key, (epoch, 0, 0)), count)
        ends = self.starts[1:][runs]
        ends -= self.starts[:-1][runs]
        return runs, _small(np.cumsum(ends, out=ends), self.samples)


@dataclass(frozen=True)
class OrderRule:
    """What makes an order of shards, whichever they are: those of a set, or of each part of a mixture."""

    seed: int
    lanes: int = LANES
    rollbacks: int = 0

    def of(self, shards: Sequence[Shard]) -> Order:
        """Return the order of `shards`."""
        return Order(shards, self.seed, self.lanes, self.rollbacks)


def sharing(lanes: int, batch: int, micro_batch: int, world_size: int) -> tuple[Ints, Ints, NDArray[np.float64]]:
    """Which rank draws from which lane, as `pipeline.data.loader` slices a batch: (rank, lane, share of the lane), each [n].

    Ranks that share a lane read the same runs. Batch and lanes fall into step again after lanes / gcd(lanes, batch)
    batches; as many are looked at, or a million positions.
    """
    steps = max(1, min(lanes // math.gcd(lanes, batch), (1 << 20) // batch))
    ranks = np.arange(batch, dtype=np.int64) // micro_batch % world_size
    drawn = np.sort(np.arange(steps * batch, dtype=np.int64).reshape(steps, batch) % lanes)
    pairs, counts = np.unique(ranks * lanes + drawn, return_counts=True)
    rank, lane = np.divmod(pairs, lanes)
    return rank, lane, counts / np.bincount(lane, counts)[lane]


def open_runs(lanes: int, batch: int, micro_batch: int, world_size: int) -> int:
    """Runs that a rank draws from at a time: a window (and what it cuts) in each of its lanes, and in the remainder."""
    ranks, _, _ = sharing(lanes, batch, micro_batch, world_size)
    return (int(np.bincount(ranks).max()) + 1) * (WINDOW + 2)


def lanes_for(batch: int, micro_batch: int) -> int:
    """Lanes, `LANES` or more where the batch allows, so that every lane of every batch falls to one rank."""
    slices = batch // micro_batch
    return next((slices * k for k in range(1, micro_batch) if micro_batch % k == 0 and slices * k >= LANES), batch)


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


def permutation(n: int, key: int, counter: tuple[int, int, int]) -> Ints:
    """A permutation of n, keyed by `key` (128 bits) and `counter`; Order uses (epoch, lane + 1 or 0, window or 0)."""
    # By sorting raw Philox words: NumPy promises those for good, while `Generator.permutation` may change between
    # versions and would change the order under a run that is resumed.
    generator = np.random.Philox(key=key, counter=np.array([0, *counter], np.uint64))
    return np.argsort(generator.random_raw(n), kind="stable")


def _small(values: Ints, top: int) -> NDArray[Any]:
    """Values in [0, top], in the smallest dtype that holds them: these arrays are the memory of a plan."""
    return values.astype(np.min_scalar_type(top))


def _groups(keys: Ints) -> list[Ints]:
    """Indices of equal keys, together."""
    order = np.argsort(keys, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(keys[order])) + 1)


def _run_starts(shards: Sequence[Shard]) -> Ints:
    """From the sizes of the shards alone, so that an order needs no index: each is cut into runs of equal samples."""
    samples = np.fromiter((shard.samples for shard in shards), np.int64, len(shards))
    sizes = np.fromiter((shard.bytes for shard in shards), np.int64, len(shards))
    runs = np.minimum(samples, np.maximum(1, sizes // _run_bytes(int(sizes.sum()))))
    starts = np.arange(runs.sum() + 1) - np.append(np.repeat(np.cumsum(runs) - runs, runs), runs.sum())  # run of its shard
    starts[:-1] *= np.repeat(samples, runs)
    starts[:-1] //= np.repeat(runs, runs)
    starts[:-1] += np.repeat(np.cumsum(samples) - samples, runs)
    starts[-1] = samples.sum()
    return starts


def _run_bytes(total: int) -> int:
    """About a thousand runs for a small set (or the windows would hold all of it), `MAX_RUNS` for a very large one."""
    return max(MIN_RUN_BYTES, min(MAX_RUN_BYTES, total >> 10), total // MAX_RUNS)
