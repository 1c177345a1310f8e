"""Compare batch 64 with batch 512 for a BigGAN on Fashion-MNIST, after equally many updates.

    python -m benchmarks.large_batch --updates 250 500 --seeds 0 1 2
    python -m benchmarks.large_batch --images 4096 --seeds 0 --samples 1000     (a quick look: so many images in all of a run)

Only the batch of the preset `fashion-mnist` changes. Learning rates and batch norm's groups stay the same, and the EMA counts
updates. One classifier evaluates each run after each of `--updates`. At equal updates the larger batch has seen eight times
the images, so the table has both numbers.
"""

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

from benchmarks.support.commands import biggan, judged, train
from benchmarks.support.report import report

BATCHES = (64, 512)
GROUP = 32
HALF_LIFE = 69
"""Of the EMA, in updates: a decay of 0.99."""


def _run(args: argparse.Namespace, batch: int, seed: int, updates: int) -> dict[str, Any]:
    """Continue the run up to `updates`, evaluate it, and return a row."""
    run, images, began = args.work / f"batch-{batch}-{seed}", updates * batch, time.perf_counter()
    changes = {"run": run, "seed": seed, "data.uri": args.work / "shards" / "train", "total_images": images}
    changes |= {"batch.global_batch": batch, "batch.micro_batch": 32, "batch.norm_group": GROUP, "optim.decay_from": "null"}
    changes |= {"optim.ema_half_life": HALF_LIFE * batch, "checkpoint.every": images, "tracking.mode": "off"}
    train("fashion-mnist", changes)
    found = judged(run, args.work / "judge", args.samples)
    row = {"batch": batch, "updates": updates, "seed": seed, "images": images, "seconds": round(time.perf_counter() - began)}
    return row | {"accuracy": round(found["accuracy"], 4), "FID": round(found["FID"], 2)}


def main() -> None:
    """Measure and report, as the module says."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.large_batch", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--updates", type=int, nargs="+", default=[250, 500], help="evaluate after so many (default: 250 500)")
    parser.add_argument("--images", type=int, help="train each run on at most so many, in place of --updates")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="one run each (default: 0 1 2)")
    parser.add_argument(
        "--work", type=Path, default=Path("runs/large-batch"), help="folder for shards and runs (default: %(default)s)"
    )
    parser.add_argument("--samples", type=int, default=10_000, help="to judge a run by (default: 10,000)")
    args = parser.parse_args()
    updates = sorted(args.updates) if args.images is None else [max(1, args.images // max(BATCHES))]
    biggan("shard", "fashion-mnist", args.work / "shards")
    rows: list[dict[str, Any]] = []
    for seed in args.seeds:
        for batch in BATCHES:
            for count in updates:
                rows.append(_run(args, batch, seed, count))
                print(rows[-1], flush=True)
    means = [
        {"batch": batch, "updates": count}
        | {
            key: round(statistics.mean(row[key] for row in rows if (row["batch"], row["updates"]) == (batch, count)), 4)
            for key in ("accuracy", "FID")
        }
        for count in updates
        for batch in BATCHES
    ]
    # What the study is about: at equal updates, the larger batch is ahead in each seed.
    ahead = [
        min(row["FID"] for row in rows if (row["updates"], row["seed"], row["batch"]) == (count, seed, BATCHES[0]))
        > max(row["FID"] for row in rows if (row["updates"], row["seed"], row["batch"]) == (count, seed, BATCHES[1]))
        for count in updates
        for seed in args.seeds
    ]
    report("large_batch", rows + means, {"means": means, "runs": rows, "ahead": sum(ahead), "of": len(ahead)}, all(ahead))


if __name__ == "__main__":
    main()
