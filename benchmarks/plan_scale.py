"""The order of training for more data and ranks than can be had here: its memory, its time, what it makes the ranks read.

    python -m benchmarks.plan_scale --samples 1000000000 --ranks 1024

Only the plan is made: shards are described, not stored. Memory is what the process grows by, at its peak, from having the
shards' descriptions to having used the plan on both sides of an epoch's end. Reading is simulated for some ranks: each keeps
as many runs as `Share.open_runs` says, and what it fetches is compared with what it needs.
"""

import argparse
import resource
import time
from collections import OrderedDict
from typing import Any

import numpy as np

from benchmarks.report import report
from pipeline.index import Shard
from pipeline.order import Order
from pipeline.share import Share

_IMAGE = 110_000  # bytes: ImageNet's mean
_SHARD = 1_000_000_000


def _shards(samples: int) -> list[Shard]:
    each = _SHARD // _IMAGE
    return [Shard(f"{i:06d}.tar", min(each, samples - i * each), _SHARD, 0, 0) for i in range(-(-samples // each))]


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def fetched(order: Order, share: Share, steps: int, ranks: int = 4) -> float:
    """Runs that some neighbouring ranks fetch, divided by those that hold what they need; a run that two need counts once."""
    capacity, count, needed = share.open_runs(order, 6), 0, set()
    for rank in range(share.world_size // 2, min(share.world_size, share.world_size // 2 + ranks)):
        kept: OrderedDict[int, None] = OrderedDict()
        plans = Share(share.global_batch, share.micro_batch, rank, share.world_size).plans(order, 0)
        for _ in range(steps * share.global_batch // (share.micro_batch * share.world_size)):
            for run in np.unique(order.run_of(next(plans).samples)).tolist():
                needed.add(run)
                count += run not in kept
                kept[run] = None
                kept.move_to_end(run)
                while len(kept) > capacity:
                    kept.popitem(last=False)
    return count / len(needed)


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=1_000_000_000)
    parser.add_argument("--ranks", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=600, help="that reading is simulated for (default 600)")
    args = parser.parse_args()
    shards, batch = _shards(args.samples), 2 * args.ranks
    before = _peak()
    began = time.perf_counter()
    order = Order(shards, 0, args.ranks)
    built = time.perf_counter() - began
    mine = Share(batch, batch // args.ranks, args.ranks // 3, args.ranks)
    began = time.perf_counter()
    next(mine.plans(order, args.samples // 2))
    first = time.perf_counter() - began
    seeks = []
    for position in np.linspace(0, args.samples - batch, 20).astype(int).tolist():
        began = time.perf_counter()
        next(mine.plans(order, position))
        seeks.append(time.perf_counter() - began)
    next(mine.plans(order, args.samples - batch // 2))
    memory = _peak() - before
    rows: list[dict[str, Any]] = []
    for lanes in (48, args.ranks, 2 * args.ranks):
        share, plan = Share(batch, batch // args.ranks, 0, args.ranks), Order(shards, 0, lanes)
        said, read = share.amplification(plan), fetched(plan, share, args.steps)
        rows.append({"ranks": args.ranks, "lanes": lanes, "global batch": batch, "said": said, "simulated": read})
    good = [row["simulated"] for row in rows if row["lanes"] >= args.ranks]
    figures = {
        "samples": args.samples,
        "ranks": args.ranks,
        "runs": len(order.starts) - 1,
        "seconds_to_build": round(built, 3),
        "seconds_to_first_batch": round(first, 3),
        "milliseconds_to_seek_median": round(1e3 * float(np.median(seeks)), 2),
        "megabytes": round(memory, 1),
        "amplification": round(max(good), 3),
    }
    report("plan_scale", rows, figures, memory < 200 and built + first < 2 and max(good) <= 1.1)


if __name__ == "__main__":
    main()
