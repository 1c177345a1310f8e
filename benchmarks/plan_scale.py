"""Plan the order of a very large run: measure time, memory, and how often each byte of the data would be read.

    python -m benchmarks.plan_scale [--samples 1e9 --ranks 1024 --sample-bytes 110000 --shard-bytes 1e9]

No data is read. Shards are described, and the plan is built and used as a rank uses it. The runs of samples that ranks would
fetch are counted over several windows of every lane, once the caches are full. Each rank keeps a cache of runs; `if_dropped`
counts with a cache that drops a run after its last sample.

`expected` is what `Order.amplification` predicts. `ok` is false if a limit of the project is exceeded: 200 MB and 2 s for the
plan, milliseconds to seek, an amplification of 1.1 with the lanes that `lanes_for` advises, or 20 % off the prediction.
"""

import argparse
import itertools
import resource
import sys
import time
import tracemalloc
from collections import OrderedDict
from typing import Any

import numpy as np

from benchmarks.support.report import report
from pipeline.data.manifest import Shard
from pipeline.data.mixture import Mixture, part_seed
from pipeline.data.order import LANES, Ints, Order, lanes_for
from pipeline.data.sampler import RankSampler

SEED = 1
SEEKS = 50
MICRO = 64
WATCHED = 16  # ranks whose reads are counted, of all
AHEAD = 6  # micro-batches whose runs a stream fetches before they are drawn
WINDOWS = 3  # that each lane walks while they are counted


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.plan_scale", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--samples", type=float, default=1e9, help="images of the set (default: 1e9)")
    parser.add_argument("--ranks", type=int, default=1024, help="of the training (default: 1024)")
    parser.add_argument("--sample-bytes", type=float, default=110_000, help="mean size of an image (default: 110000)")
    parser.add_argument("--shard-bytes", type=float, default=1e9, help="size of a shard (default: 1e9)")
    args = parser.parse_args()
    ranks, batch = args.ranks, args.ranks * MICRO

    tracemalloc.start()
    shards = describe(int(args.samples), args.sample_bytes, args.shard_bytes)
    shards_mb = tracemalloc.get_traced_memory()[0] / 1e6
    tracemalloc.stop()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    figures: dict[str, Any] = times(shards, ranks, batch)
    figures["rss_mb"] = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e3  # Linux counts in kB
    tracemalloc.start()
    times(shards, ranks, batch)
    figures |= {"traced_mb": tracemalloc.get_traced_memory()[1] / 1e6, "shards_mb": shards_mb}
    tracemalloc.stop()
    print("\n".join(f"{name}: {value:,.3f}" for name, value in figures.items()))

    # (ranks, lanes, batch, micro-batch): first those that `lanes_for` chooses, then what else a user may type.
    good = [
        (w, lanes_for(w * MICRO * n, MICRO), w * MICRO * n, MICRO) for w, n in ((ranks, 1), (ranks, 4), (max(1, ranks // 2), 2))
    ]
    bad = [
        (ranks, LANES, batch, MICRO),
        (ranks, ranks, batch, MICRO // 4),
        (ranks, ranks + 24, batch, MICRO),
        (ranks, ranks * 2 + 48, batch, MICRO),
        (-(-ranks * 3 // 4), ranks, -(-ranks * 3 // 4) * MICRO, MICRO),
        (32, LANES, 32 * MICRO, MICRO),
        (8, LANES, 2048, MICRO),
    ]
    rows = [row(Order(shards, SEED, case[1]), *case) | {"advised": case in good} for case in good + bad]
    w, lanes, total, micro = good[0]
    cut = len(shards) // 10
    parts = [Order(part, part_seed(SEED, i), lanes) for i, part in enumerate((shards[cut:], shards[:cut]))]
    for weights in ((0.5, 0.5), (0.99, 0.01)):
        rows.append({**row(Mixture(parts, weights, SEED), w, lanes, total, micro), "advised": True, "weights": weights})

    worst = max(found["amplification"] for found in rows if found["advised"])
    ok = figures["total_s"] <= 2 and max(figures["traced_mb"], figures["rss_mb"]) <= 200
    ok = ok and figures["seek_ms"] <= 10 and worst <= 1.1
    ok = ok and all(abs(found["expected"] / found["amplification"] - 1) <= 0.2 for found in rows)
    figures |= {"samples": args.samples, "shards": len(shards), "amplification": worst, "cases": rows}
    report("plan_scale", rows, figures, ok)
    return 0 if ok else 1


def describe(samples: int, sample_bytes: float, shard_bytes: float) -> list[Shard]:
    """Shards of that size; the last one holds the rest."""
    each = int(shard_bytes // sample_bytes)
    counts = [min(each, samples - first) for first in range(0, samples, each)]
    return [Shard(f"{i:06d}.tar", count, int(count * sample_bytes), 0, 0) for i, count in enumerate(counts)]


def times(shards: list[Shard], ranks: int, batch: int) -> dict[str, Any]:
    """What a rank waits for: the plan, its first slice, any later point, a whole batch that two epochs share."""
    clock = [time.perf_counter()]
    order = Order(shards, SEED, lanes_for(batch, MICRO))
    clock.append(time.perf_counter())
    order.at(slices(by_lane(order, 0, batch), MICRO, 0, ranks)[0])
    clock.append(time.perf_counter())
    for point in np.random.default_rng(0).integers(0, order.samples - batch, SEEKS).tolist():
        order.at(slices(by_lane(order, point, batch), MICRO, ranks // 2, ranks)[0])
    clock.append(time.perf_counter())
    order.batch(order.samples - batch // 2, batch)
    clock.append(time.perf_counter())
    build, first, seeks, boundary = np.diff(clock).tolist()
    return {
        "runs": len(order.starts) - 1,
        "build_s": build,
        "first_slice_s": first,
        "seek_ms": 1e3 * seeks / SEEKS,
        "two_epochs_s": boundary,
        "total_s": clock[-1] - clock[0] - seeks,
    }


def row(plan: Order | Mixture, ranks: int, lanes: int, batch: int, micro: int) -> dict[str, Any]:
    """One line of the table."""
    parts = len(plan.orders) if isinstance(plan, Mixture) else 1
    run_samples = plan.samples / (len(plan.starts) - 1)
    steps = int(np.ceil(8 * run_samples * lanes / batch)) + 1  # that a lane needs for a window
    capacity = RankSampler(batch, micro, 0, ranks).open_runs(plan, AHEAD) // parts
    watched = np.random.default_rng(0).choice(ranks, min(WATCHED, ranks), replace=False).tolist()
    caches = {
        (rank, part, drops): Cache(capacity, drops) for rank in watched for part in range(parts) for drops in (False, True)
    }
    drawn, fetched = 0, {False: 0, True: 0}
    for step in range((1 + WINDOWS) * steps * parts):
        counted = step >= steps * parts
        ordered = by_lane(plan, step * batch, batch)
        for rank in watched:
            for positions in slices(ordered, micro, rank, ranks):
                samples = plan.at(positions)[1]
                part = plan.part_of(samples) if isinstance(plan, Mixture) else np.zeros_like(samples)
                drawn += len(samples) * counted
                for i, drops in itertools.product(range(parts), fetched):
                    fetched[drops] += counted * caches[rank, i, drops].fetch(plan.starts, plan.run_of(samples[part == i]))
    return {
        "ranks": ranks,
        "lanes": lanes,
        "batch": batch,
        "micro": micro,
        "open_runs": capacity,
        "amplification": fetched[False] / drawn,
        "if_dropped": fetched[True] / drawn,
        "expected": plan.amplification(batch, micro, ranks),
    }


class Cache:
    """A rank's runs: the last used ones, as the stream keeps them; with `drops`, less those that are drawn to the end."""

    def __init__(self, capacity: int, drops: bool) -> None:
        self._capacity, self._drops = capacity, drops
        self._left: OrderedDict[int, int] = OrderedDict()  # samples not drawn yet, of each run

    def fetch(self, starts: Ints, drawn: Ints) -> int:
        """Samples that are read to have these runs, one for each sample that is drawn."""
        if self._drops:
            for run in [run for run, left in self._left.items() if left <= 0]:
                del self._left[run]
        runs, counts = np.unique(drawn, return_counts=True)
        read = 0
        for run, count in zip(runs.tolist(), counts.tolist(), strict=True):
            if run not in self._left:
                self._left[run] = int(starts[run + 1] - starts[run])
                read += self._left[run]
            self._left[run] -= count
            self._left.move_to_end(run)
        while len(self._left) > max(self._capacity, len(runs)):
            self._left.popitem(last=False)
        return read


def by_lane(plan: Order | Mixture, start: int, batch: int) -> Ints:
    """The positions of a batch, as `pipeline.data.loader` sorts them."""
    return start + np.argsort(plan.lanes(start, batch), kind="stable")


def slices(positions: Ints, micro: int, rank: int, ranks: int) -> list[Ints]:
    """A rank's micro-batches of a sorted batch."""
    return [positions[first : first + micro] for first in range(rank * micro, len(positions), ranks * micro)]


if __name__ == "__main__":
    sys.exit(main())
