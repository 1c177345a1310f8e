"""`python -m benchmarks.step [CONFIG key=value ...] --micro-batch 4 8 16`: our training step alone.

An update is `batch.d_steps` D steps, a G step and the average, by the engines and steps that train, on images that are on the
device already; each micro-batch has a process of its own, so that the peak of memory is its own. images/s are real images that
D sees. Unless `key=value` says otherwise a global batch is one micro-batch, and nothing is shared (`zero.stage=0`).

MFU is counted FLOP/s over the measured rate of a matrix product in the same precision. It counts the plain network: where
resizing and 3x3 convolution are one (`model/resample.py`), or `activation_checkpointing` computes blocks again, fewer or more
are computed. On a GPU, fp32 has its convolutions in TF32, as torch has by default, while the product is in fp32.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from benchmarks.arms.step import config_of
from benchmarks.support.limited import DoesNotFitError, FailedError, call
from benchmarks.support.report import report
from benchmarks.support.workers import one_rank
from model.config import ModelConfig
from model.describe import training_cost
from pipeline.errors import ConfigError

PRESET = "biggan-128"
SMALL = ["model.resolution=32", "model.ch=16", "model.num_classes=10", "precision=fp32"]
"""Overrides of `PRESET` on a CPU, for which the real one is large, and bf16 slow without AMX."""
SIZES = {True: [32, 64, 128, 256], False: [4, 8, 16]}
"""Micro-batches, by whether there is a GPU."""


def ask(asked: dict[str, Any], limit: float, log: Path) -> dict[str, Any]:
    """What `benchmarks.arms.step` answers. Raises FailedError, DoesNotFitError."""
    command = [sys.executable, "-m", "benchmarks.arms.step"]
    environment = one_rank(torch.cuda.is_available()) | {"PYTHONWARNINGS": "ignore::FutureWarning"}
    return json.loads(call(command, limit, log, json.dumps(asked), environment))


def row(
    source: str,
    overrides: list[str],
    micro_batch: int,
    updates: int | None,
    limit: float,
    log: Path,
    more: Mapping[str, Any] = MappingProxyType({}),
) -> dict[str, Any]:
    """One row of the table; with the key `error` if there are no figures.

    `more` is asked of `step_arm`: `search`, `plain`, `trace`.
    """
    begun: dict[str, Any] = {"micro-batch": micro_batch}
    asked = {"what": "step", "source": source, "overrides": overrides, "micro_batch": micro_batch, "updates": updates}
    try:
        config = config_of(source, overrides, micro_batch)
        found = ask({**asked, **more}, limit, log)
    except DoesNotFitError:
        return begun | {"error": "does not fit"}
    except (FailedError, ConfigError) as error:
        return begun | {"error": str(error)}
    if found["skipped"]:
        steps = found["updates"] * (config.batch.d_steps + 1)
        return begun | {"error": f"{found['skipped']} of {steps} optimiser steps were skipped: their gradients are not finite"}
    traced = {key: found[key] for key in ("traced", "kernels", "busy", "gaps", "not traced") if key in found}
    return begun | figures(found, _flops(config.model, config.batch.d_steps)) | traced


def figures(found: dict[str, Any], flops: float) -> dict[str, Any]:
    """The columns of a row, from the answer of `step_arm` and counted FLOPs for an image."""
    rate = found["images"] / found["seconds"]
    columns = {"images/s": rate, **{f"{name} s": seconds for name, seconds in found["phases"].items()}}
    columns |= {"GFLOP/image": flops / 1e9, "matrix TFLOP/s": found["rate"] / 1e12, "MFU": flops * rate / found["rate"]}
    columns |= {"GB": found["memory"] / 1e9, "updates": found["updates"], "warm-up s": found["warm"]}
    return columns | ({"threads": found["threads"]} if found["type"] == "cpu" else {})


@cache
def _flops(model: ModelConfig, d_steps: int) -> float:
    return training_cost(model).per_image(d_steps)


def good(rows: list[dict[str, Any]]) -> bool:
    """Whether nothing went wrong and something was measured: what does not fit is an answer."""
    return all(row.get("error") in (None, "does not fit") for row in rows) and any("images/s" in row for row in rows)


def main() -> int:
    gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(prog="python -m benchmarks.step", description=__doc__)
    default = PRESET if gpu else f"{PRESET} with {' '.join(SMALL)}"
    parser.add_argument("config", metavar="CONFIG", nargs="?", help=f"preset or file (default: {default})")
    parser.add_argument("overrides", metavar="key=value", nargs="*", help="such as precision=fp32")
    parser.add_argument("--micro-batch", metavar="N", type=int, nargs="+", default=SIZES[gpu], help="one row each")
    parser.add_argument("--updates", type=int, metavar="N", help="timed ones (default: those of 5 seconds)")
    parser.add_argument("--limit", type=float, default=600, metavar="SECONDS", help="for a row (default: 600)")
    args, rest = parser.parse_known_args()
    if any(part.startswith("-") or "=" not in part for part in rest):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    source, overrides = args.config, [*args.overrides, *rest]
    if source is None or "=" in source:
        source, overrides = PRESET, [*([] if gpu else SMALL), *([source] if source else []), *overrides]
    if args.updates is not None and args.updates < 1:
        parser.error(f"--updates {args.updates}: must be at least 1")
    try:
        for size in args.micro_batch:
            config_of(source, overrides, size)
    except ConfigError as error:
        parser.error(str(error))
    rows = []
    with tempfile.TemporaryDirectory(prefix="biggan-step-") as folder:
        for size in args.micro_batch:
            rows.append(row(source, overrides, size, args.updates, args.limit, Path(folder, "log")))
            print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    report("step", rows, {"config": source, "overrides": overrides, "rows": rows}, good(rows))
    return 0 if good(rows) else 1


if __name__ == "__main__":
    sys.exit(main())
