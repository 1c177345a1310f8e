"""`python -m benchmarks.step [CONFIG key=value ...] --micro-batch 4 8 16`: measure our training step alone.

An update is `batch.d_steps` D steps, a G step and the average, with the engines and steps that train. The images are on the
device already. Each micro-batch has its own process, and so its own peak of memory. images/s counts the real images that D
sees. Unless `key=value` says otherwise, a global batch is one micro-batch and nothing is sharded (`zero.stage=0`).

MFU is the counted FLOP/s over the measured rate of a matrix product in the same precision. It counts the plain network. Fewer
FLOPs are computed where resizing and 3x3 convolution are one (`model/resample.py`), more with `activation_checkpointing`. On a
GPU, convolutions in fp32 use TF32, which is torch's default, and the matrix product does not.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.arms.step import config_of
from benchmarks.support.report import report
from benchmarks.support.step_rows import PRESET, SMALL
from benchmarks.support.step_rows import row as step_row
from pipeline.errors import ConfigError

SIZES = {True: [32, 64, 128, 256], False: [4, 8, 16]}
"""Micro-batches, by whether there is a GPU."""


def good(rows: list[dict[str, Any]]) -> bool:
    """Whether nothing went wrong and something was measured: what does not fit is an answer."""
    return all(row.get("error") in (None, "does not fit") for row in rows) and any("images/s" in row for row in rows)


def main() -> int:
    gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.step", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
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
            rows.append(step_row(source, overrides, size, updates=args.updates, limit=args.limit, log=Path(folder, "log")))
            print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    report("step", rows, {"config": source, "overrides": overrides, "rows": rows}, good(rows))
    return 0 if good(rows) else 1


if __name__ == "__main__":
    sys.exit(main())
