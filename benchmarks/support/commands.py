"""Run `biggan` as a user would, for benchmarks of training."""

import json
import subprocess
import sys
from pathlib import Path


def biggan(*words: object) -> None:
    """Run `biggan WORDS`. Raises SystemExit with its output if it fails."""
    done = subprocess.run([sys.executable, "-m", "jobs.cli", *map(str, words)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"biggan {words[0]} ended with {done.returncode}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")


def train(config: str, changes: dict[str, object]) -> None:
    """Run `biggan train` with these keys. Raises SystemExit as `biggan` does."""
    biggan("train", config, *(f"{key}={value}" for key, value in changes.items()))


def judged(run: Path, cache: Path, samples: int) -> dict[str, float]:
    """Return accuracy and FID of a run's newest checkpoint, by the classifier of Fashion-MNIST in `cache`."""
    document = run / "judged.json"
    judge = ("--extractor", "fashion-mnist-clf", "--cache", cache, "--samples", samples)
    biggan("evaluate", run, "--json", document, *judge)
    found = json.loads(document.read_text())
    return {"accuracy": found["accuracy"], "FID": found["FID[fashion-mnist-clf]"]}
