"""Give damaged files of every kind to every reader: each try must end in silence or in one line.

    python -m benchmarks.fuzz_readers --seconds 600 [--reader NAME] [--seed N]

The product makes the real files. `support/fuzz/mutations` damages them at random and by the rules of their formats, and
`support/fuzz/readers` reads them. A traceback, a hang or too much memory is a failure, and the output names its seed. Repeat
that try with `--reader NAME --seed N --tries 1`.
"""

import argparse
import multiprocessing
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.support.fuzz.readers import READERS
from benchmarks.support.fuzz.run_readers import RUN_READERS
from benchmarks.support.fuzz.seeds import SEEDS
from benchmarks.support.fuzz.tries import Outcome, Reader, fuzz
from benchmarks.support.report import report

ALL = (*READERS, *RUN_READERS)


def make_seeds(folder: Path, readers: Sequence[Reader]) -> None:
    """Make the real files of `readers` below `folder`, in a process of its own: threads of it would not live in a fork."""
    child = multiprocessing.get_context("fork").Process(target=_make_seeds, args=(folder, readers))
    child.start()
    child.join()
    if child.exitcode:
        raise RuntimeError("the real files could not be made")


def _make_seeds(folder: Path, readers: Sequence[Reader]) -> None:
    os.chdir(folder)
    names = {reader.seeds for reader in readers}
    wanted = names | ({"shards"} if "run" in names else set())
    with open(os.devnull, "w") as nothing:
        os.dup2(nothing.fileno(), 1)
        for name in [name for name in SEEDS if name in wanted]:
            SEEDS[name](folder / name)


def rows(outcomes: dict[str, Outcome]) -> list[dict[str, object]]:
    """Return a row for each reader."""
    return [
        {
            "reader": name,
            "tries": found.tries,
            "read": found.read,
            "refused": found.refused,
            "different lines": len(found.lines),
            "failures": len(found.failures),
            "slowest s": round(found.slowest, 2),
            "peak MB": round(found.memory / 1e6, 1),
        }
        for name, found in outcomes.items()
    ]


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and report, as the module says."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.fuzz_readers", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=600, help="for all readers together (default 600)")
    parser.add_argument("--reader", action="append", choices=[reader.name for reader in ALL], help="only this one, or these")
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of each reader's first try; the next tries count up (default: 0)"
    )
    parser.add_argument("--tries", type=int, help="tries of each reader, instead of --seconds")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    readers = [reader for reader in ALL if not args.reader or reader.name in args.reader]
    outcomes: dict[str, Outcome] = {}
    with tempfile.TemporaryDirectory(prefix="biggan-fuzz-") as folder:
        make_seeds(Path(folder), readers)
        began = time.monotonic()
        for number, reader in enumerate(readers, 1):
            until = began + args.seconds * number / len(readers) if args.tries is None else float("inf")
            outcomes[reader.name] = fuzz(reader, Path(folder), args.seed, args.tries, until)
    _tell_failures(outcomes)
    tries = sum(found.tries for found in outcomes.values())
    failures = {name: [failure[:2] for failure in found.failures] for name, found in outcomes.items() if found.failures}
    figures = {"seed": args.seed, "tries": tries, "readers": rows(outcomes), "failures": failures}
    report("fuzz_readers", rows(outcomes), figures, bool(tries) and not failures)


def _tell_failures(outcomes: dict[str, Outcome]) -> None:
    """Print the first failure of each kind with its traceback, and how to repeat it."""
    for name, found in outcomes.items():
        for what in dict.fromkeys(what for _, what, _ in found.failures):
            same = [(seed, text) for seed, other, text in found.failures if other == what]
            seed, text = min(same, key=lambda one: one[0])
            print(f"{name}: {what}, {len(same)} times; --reader {name} --seed {seed} --tries 1\n{text}")


if __name__ == "__main__":
    main()
