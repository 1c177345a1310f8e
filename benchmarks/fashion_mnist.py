"""Compare BigGAN with the hinge loss with an older conditional GAN on Fashion-MNIST, for equally long.

    python -m benchmarks.fashion_mnist --seeds 0 1 2        (eleven minutes on 2 cores for each of the six runs)

The presets are `fashion-mnist` and `fashion-mnist-transposed`. The older form has transposed and strided convolutions, batch
norm, the label concatenated to its input, and the minimax loss. Each trains on as many images as 2 idle cores take in ten
minutes. One classifier judges 10,000 samples of each.
"""

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

from benchmarks.support.commands import biggan, judged, train
from benchmarks.support.report import report

IMAGES = {"fashion-mnist": 256_000, "fashion-mnist-transposed": 320_000}


def main() -> None:
    """Measure and report, as the module says."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.fashion_mnist", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="one run each (default: 0 1 2)")
    parser.add_argument(
        "--work", type=Path, default=Path("runs/compare"), help="folder for shards and runs (default: %(default)s)"
    )
    parser.add_argument(
        "--share", type=float, default=1.0, help="train on this share of the images, for a quick look (default: 1)"
    )
    parser.add_argument("--samples", type=int, default=10_000, help="to judge a run by (default: 10,000)")
    args = parser.parse_args()
    shards = args.work / "shards"
    biggan("shard", "fashion-mnist", shards)
    rows: list[dict[str, Any]] = []
    for seed in args.seeds:
        for preset, images in IMAGES.items():
            images, run = round(args.share * images), args.work / f"{preset}-{seed}"
            began = time.perf_counter()
            changes = {"run": run, "seed": seed, "data.uri": shards / "train", "total_images": images}
            changes |= {"optim.decay_from": images // 2}
            train(preset, changes)
            seconds = round(time.perf_counter() - began)
            found = judged(run, args.work / "judge", args.samples)
            rows.append({"preset": preset, "seed": seed, "images": images, "seconds": seconds})
            rows[-1] |= {"accuracy": round(found["accuracy"], 4), "FID": round(found["FID"], 2)}
            print(rows[-1], flush=True)
    figures = {
        preset: {
            key: round(statistics.mean(row[key] for row in rows if row["preset"] == preset), 4) for key in ("accuracy", "FID")
        }
        for preset in IMAGES
    }
    report("fashion_mnist", rows, figures | {"runs": rows}, all(row["accuracy"] > 0.8 for row in rows))


if __name__ == "__main__":
    main()
