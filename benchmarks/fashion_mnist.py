"""BigGAN with the hinge loss beside the older form of a conditional GAN, on Fashion-MNIST, for equally long.

    python -m benchmarks.fashion_mnist --seeds 0 1 2        (eleven minutes on 2 cores for each of the six runs)

The presets `fashion-mnist` and `fashion-mnist-transposed` (transposed and strided convolutions, batch norm, the label
concatenated, the minimax loss), each for as many images as 2 cores took in ten minutes with nothing else running; judged by one
classifier on 10,000 samples.
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
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--work", type=Path, default=Path("runs/compare"), help="folder for shards and runs")
    parser.add_argument("--share", type=float, default=1.0, help="of the images, for a quick look")
    parser.add_argument("--samples", type=int, default=10_000)
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
