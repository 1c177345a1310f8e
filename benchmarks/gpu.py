"""`python -m benchmarks.gpu --out DIR`: measure everything that needs a GPU, on one GPU, in less than nine minutes.

The parts, the most important first, until `--budget` is spent:

- the rate of a matrix product;
- our step (`benchmarks.step`) of biggan-128 with one D step, and of biggan-256, by mode and micro-batch;
- the originals (`benchmarks.peers`), for each checkout that is named;
- a training on packed shards, with the time that it waits for data;
- the slowest kernels of the first steps, and the longest gaps between kernels.

Each part has its own processes and a time limit. A part that fails becomes a row with the error, and the others continue. DIR
gets `rows.jsonl` (one line as each part ends), `result.json`, the traces and the `log`.

Without a GPU the parts run at tiny sizes, which shows that they run. The bars do not judge the figures of a CPU.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.peers import KNOWN
from benchmarks.support.gpu_parts import GPU, TINY, Bench, Row, attempt, bars, beside, one_step, rates, trained
from benchmarks.support.report import report, surroundings, table

LEAST = {True: 30.0, False: 12.0}
"""Seconds in which no part can be done, by whether there is a GPU."""


@dataclass(frozen=True)
class Part:
    """A part to measure, which becomes a row."""

    name: str
    limit: float
    """Seconds that it may take at most."""
    run: Callable[..., Row]
    arguments: tuple[Any, ...] = ()


def plan(bench: Bench) -> list[Part]:
    """Return all parts, the most important ones first."""

    def step(pixels: int, mode: str, micro_batch: int) -> Part:
        limit = bench.sizes.compile_limit if "compiled" in mode else 90
        if (pixels, mode, micro_batch) in bench.sizes.first[: bench.sizes.traced]:
            limit *= 1.5
        return Part(f"step {pixels} px, {mode}, {micro_batch}", limit, one_step, (pixels, mode, micro_batch))

    parts = [Part("rates", 90, rates), *(step(*one) for one in bench.sizes.first)]
    first, *others = (Part(f"peers {project}", 200, beside, (project,)) for project in KNOWN)
    parts += [first, Part("training", 200, trained), *others]
    return parts + [step(*one) for one in bench.sizes.then]


def run(bench: Bench, parts: list[Part], budget: float) -> None:
    """Run the parts: fill the rows of `bench`, and write a line of each to a file."""
    end, least = time.monotonic() + budget, LEAST[torch.cuda.is_available()]
    for part in parts:
        began = time.monotonic()
        limit = min(part.limit, end - began)
        if limit < min(least, part.limit):
            row: Row = {"error": f"no time left of --budget {budget:.0f}", "ok": None}
        else:
            with open(bench.log, "a") as log:
                log.write(f"--- {part.name}, at most {limit:.0f} s\n")
            row = attempt(bench, part.run, limit, *part.arguments)
            if limit < part.limit and row.get("error", "").startswith("no end after"):
                row["ok"] = None  # for want of the budget
        bench.rows[part.name] = row = {"part": part.name, "took s": time.monotonic() - began, **row}
        text = json.dumps(row | surroundings(), default=str)
        with open(bench.out / "rows.jsonl", "a") as file:
            file.write(text + "\n")
        print(text, file=sys.stderr, flush=True)


def ok(rows: list[Row], judged: list[Row]) -> bool:
    """Return whether no part failed and no bar is missed."""
    return not any(row["ok"] is False for row in [*rows, *judged])


def show(bench: Bench, judged: list[Row]) -> None:
    """Print the tables that are nested in rows; `report` prints the rows themselves."""
    for row in bench.rows.values():
        for name in ("kernels", "gaps"):
            if found := row.get(name):
                print(f"{name} of {row['part']}", *table(found), "", sep="\n")
    for project in KNOWN:
        if found := bench.rows.get(f"peers {project}", {}).get("rows"):
            print("\n".join(table(found)), end="\n\n")
    print("\n".join(table([bar | {"ok": "not here" if bar["ok"] is None else bar["ok"]} for bar in judged])), end="\n\n")


def main() -> int:
    gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="for results; must be empty or new")
    for project in KNOWN:
        parser.add_argument(f"--{project}", type=Path, metavar="DIR", help=f"a checkout of {project}")
    parser.add_argument("--budget", type=float, default=540, metavar="SECONDS", help="for all parts (default: 540)")
    parser.add_argument("--tiny", action="store_true", help="only whether the parts run (default without a GPU)")
    args = parser.parse_args()
    if args.out.exists() and any(args.out.iterdir()):
        parser.error(f"--out {args.out}: is not empty; name a new folder")
    checkouts = {project: found for project in KNOWN if (found := getattr(args, project.replace("-", "_")))}
    for project, checkout in checkouts.items():
        if not (checkout / KNOWN[project]).is_file():
            parser.error(f"--{project} {checkout}: no {KNOWN[project]} in it; name a checkout")
    args.out.mkdir(parents=True, exist_ok=True)
    bench = Bench(args.out.resolve(), TINY if args.tiny or not gpu else GPU, checkouts)
    began = time.monotonic()
    run(bench, plan(bench), args.budget)
    rows, judged = list(bench.rows.values()), bars(bench.rows, None if bench.sizes is TINY else torch.cuda.get_device_name())
    show(bench, judged)
    figures = {"seconds": time.monotonic() - began, "tiny": bench.sizes is TINY, "rows": rows, "bars": judged}
    good = ok(rows, judged)
    result = {"benchmark": "gpu", "ok": good, **figures, **surroundings()}
    (bench.out / "result.json").write_text(json.dumps(result, default=str))
    nested = ("rows", "losses", "apart", "kernels", "gaps", "pixels", "mode", "device")
    report("gpu", [{k: v for k, v in row.items() if k not in nested} for row in rows], figures, good)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
