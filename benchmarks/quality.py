"""`python -m benchmarks.quality`: check that the quick ways to compute train as well as the network as it is written.

The preset `fashion-mnist` trains on equally many images in each way: fp32 with the network as it is written
(`benchmarks.arms.quality`), fp32, bf16, and on a GPU compiled bf16. Each run is one process with all threads, and one
classifier judges `--samples` samples of it. `ok` means that no way's mean over the seeds is worse than the first one's by more
than `ERRORS` standard errors of the difference.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import mean, variance
from typing import Any

import torch

from benchmarks.support.commands import biggan, judged
from benchmarks.support.report import report
from benchmarks.support.workers import one_rank

PLAIN = "fp32, plain"
WAYS = {PLAIN: ("plain", "precision=fp32"), "fp32": ("quick", "precision=fp32"), "bf16": ("quick", "precision=bf16")}
WAYS_ON_A_GPU = WAYS | {"bf16, compiled": ("quick", "precision=bf16", "compile=true")}
FIGURES = {"accuracy": 1.0, "FID": -1.0}
"""What is judged, and whether more of it is better."""
ERRORS = 2.0


def train(way: tuple[str, ...], run: Path, *overrides: str) -> None:
    """Raises RuntimeError with the end of the run's log."""
    log = run.with_suffix(".log")
    environment = os.environ | one_rank(torch.cuda.is_available())
    command = [sys.executable, "-m", "benchmarks.arms.quality", way[0], "fashion-mnist", f"run={run}", *way[1:], *overrides]
    with open(log, "w") as output:
        done = subprocess.run(command, env=environment, stdout=output, stderr=output, check=False)
    if done.returncode:
        raise RuntimeError(f"{run} ended with {done.returncode}:\n{log.read_text()[-3000:]}")


def row(name: str, way: tuple[str, ...], seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """Train, judge."""
    run = args.work / f"{name.replace(', ', '-')}-{seed}"
    lengths = [f"total_images={args.images}", f"optim.decay_from={args.images // 2}", f"checkpoint.every={args.images}"]
    off = ["tracking.mode=off", "sample_every=0", "processes=1"]
    train(way, run, f"seed={seed}", f"data.uri={args.work}/shards/train", *lengths, *off)
    return {"way": name, "seed": seed} | judged(run, args.work / "judge", args.samples)


def compare(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """By way and figure: the mean, and by how many standard errors of the difference it is better than `PLAIN`'s."""
    found: dict[str, dict[str, float]] = {}
    for name in dict.fromkeys(row["way"] for row in rows):
        found[name] = {}
        for figure, sign in FIGURES.items():
            here, plain = ([row[figure] for row in rows if row["way"] == way] for way in (name, PLAIN))
            error = (variance(here) / len(here) + variance(plain) / len(plain)) ** 0.5
            found[name] |= {figure: mean(here), f"{figure}, errors": sign * (mean(here) - mean(plain)) / (error or 1.0)}
    return found


def good(found: dict[str, dict[str, float]]) -> bool:
    return all(figures[f"{figure}, errors"] >= -ERRORS for figures in found.values() for figure in FIGURES)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.quality", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    ways = WAYS_ON_A_GPU if torch.cuda.is_available() else WAYS
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="at least two (default: 0 1 2)")
    parser.add_argument("--ways", nargs="+", choices=ways, default=list(ways), help=f"beside {PLAIN!r}, which is always there")
    parser.add_argument("--images", type=int, default=64_000, help="of a run (default: 64,000, a third of the preset's)")
    parser.add_argument("--samples", type=int, default=10_000, help="to judge by (default: 10,000)")
    parser.add_argument(
        "--work", type=Path, default=Path("runs/quality"), help="folder for shards and runs (default: %(default)s)"
    )
    args = parser.parse_args()
    if len(args.seeds) < 2:
        parser.error("--seeds: one seed has no spread; type two or more")
    biggan("shard", "fashion-mnist", args.work / "shards")
    rows = []
    for seed in args.seeds:
        for name in dict.fromkeys([PLAIN, *args.ways]):
            rows.append(row(name, ways[name], seed, args))
            print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    found = compare(rows)
    means = [{"way": name, "seed": "mean"} | figures for name, figures in found.items()]
    report("quality", rows + means, {"images": args.images, "means": found, "runs": rows}, good(found))
    return 0 if good(found) else 1


if __name__ == "__main__":
    sys.exit(main())
