"""BigGAN with the hinge loss beside the older form of a conditional GAN, on Fashion-MNIST, for equally long.

    python -m benchmarks.fashion_mnist --seeds 0 1 2        (eleven minutes on 2 cores for each of the six runs)

The presets `fashion-mnist` and `fashion-mnist-transposed` (transposed and strided convolutions, batch norm, the label
concatenated, the minimax loss), each for as many images as 2 cores took in ten minutes with nothing else running; judged by one
classifier on 10,000 samples.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.report import report

IMAGES = {"fashion-mnist": 256_000, "fashion-mnist-transposed": 320_000}


def _biggan(*argv: str) -> None:
    done = subprocess.run([sys.executable, "-m", "jobs.cli", *argv], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"benchmarks.fashion_mnist: biggan {argv[0]} failed\n{done.stdout[-2000:]}{done.stderr[-2000:]}")


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--work", type=Path, default=Path("runs/compare"), help="folder for shards and runs")
    parser.add_argument("--share", type=float, default=1.0, help="of the images, for a quick look")
    parser.add_argument("--samples", type=int, default=10_000)
    args = parser.parse_args()
    shards = args.work / "shards"
    _biggan("shard", "fashion-mnist", str(shards))
    rows: list[dict[str, Any]] = []
    for seed in args.seeds:
        for preset, images in IMAGES.items():
            images, run = round(args.share * images), args.work / f"{preset}-{seed}"
            began = time.perf_counter()
            changes = {"run": run, "seed": seed, "data.uri": shards / "train", "total_images": images}
            changes |= {"optim.decay_from": images // 2}
            _biggan("train", preset, *(f"{key}={value}" for key, value in changes.items()))
            seconds = round(time.perf_counter() - began)
            judged = run / "judged.json"
            options = {
                "--cache": args.work / "judge",
                "--extractor": "fashion-mnist-clf",
                "--samples": args.samples,
                "--json": judged,
            }
            _biggan("evaluate", str(run), *(str(part) for option in options.items() for part in option))
            found = json.loads(judged.read_text())
            rows.append({"preset": preset, "seed": seed, "images": images, "seconds": seconds})
            rows[-1] |= {"accuracy": round(found["accuracy"], 4), "FID": round(found["FID[fashion-mnist-clf]"], 2)}
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
