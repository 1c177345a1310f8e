"""Train the same on 1, 2 and 4 processes at each ZeRO stage, and print what `biggan plan` expects of 8 to 512 GPUs.

    python -m benchmarks.scale [CONFIG key=value ...] --processes 1 2 4 --stages 0 1 2 3 --rounds 5

Every row trains the same global batches (`batch.global_batch`, `batch.norm_group`) with our engines and steps. Each process
has its own GPU or, without one, its part of the CPU's cores over gloo. More processes than cores get one thread each. All
trainings are alive at once and take their updates in turns. One that waits uses no core.

Ratios are medians over the rounds: the time of an update on one process at stage 0 with all cores, over the time of this row
in the same round. Efficiency is the ratio per used core or GPU. `communication` is the mean share of an update in which a rank
stands still in a collective of torch.distributed or waits for its handle. That includes waiting for slower ranks, but not
messages that travel while the rank computes. MB is what a rank sends in an update, counted from the collectives' tensors as if
each were a ring, beside what `pipeline.profiling.costs` says. GB is the most that building and training took on any rank.

`apart` is the distance of the parameters of G or D from the first row's before the timed updates, over how far training has
moved them. In fp32 `ok` needs all rows within `LIMIT`, since all train the same. Later updates would add more rounding. `ok`
also needs an efficiency of `BAR` from two processes at stage 1, if they are among the rows.

The second table is the arithmetic of `biggan plan` for H100s. Nothing of it is measured.
"""

import argparse
import contextlib
import io
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from multiprocessing import Pipe
from multiprocessing.connection import wait
from pathlib import Path
from statistics import median
from typing import Any

import safetensors.torch
import torch

from benchmarks.arms.scale import rank
from benchmarks.support import workers
from benchmarks.support.distance import distance
from benchmarks.support.limited import FailedError, last_line
from benchmarks.support.report import report, table
from benchmarks.support.step_rows import PRESET, SMALL
from jobs import cli
from pipeline.cluster.worker_command import ON_A_CPU
from pipeline.config import RunConfig, load_config
from pipeline.engine.batch import plan_batch
from pipeline.errors import ConfigError
from pipeline.profiling.costs import messages, network_sizes

BATCH = ["batch.global_batch=64", "batch.norm_group=16", "batch.micro_batch=null", "precision=fp32", "optim.eps=1e-3"]
"""On top of `PRESET`: groups of batch norm that 4 processes hold whole. With its own eps Adam would make full steps of nothing
but rounding, where a bias in front of batch norm has no gradient; the larger eps is, the less of `apart` is rounding."""
WARM = 2
"""Updates before the timed ones, behind one whose messages are counted."""
BAR = 0.8
"""Of two processes: messages, and what each of them does for itself (spectral norm, at stage 0 Adam), may take a fifth."""
LIMIT = 0.05
"""Of `apart` in fp32. After three updates of the network of 32 px rounding had made 0.014, and real images of which every
second was replaced 0.14 (with an eps of 1e-5 0.062 and 0.25). In bf16 rounding alone is too near to that to judge by."""
GPUS = [8, 16, 32, 64, 128, 256, 512]
PLAN = ["biggan-128", "batch.global_batch=2048", "batch.micro_batch=null"]
NODE = 8
"""GPUs of a node in the plan."""
HELP = argparse.RawDescriptionHelpFormatter


@dataclass(frozen=True)
class Case:
    """One row: a training on so many processes."""

    processes: int
    threads: int
    """Of each process."""
    devices: int
    """GPUs or cores that all of them use."""
    stage: int


def cases(processes: Sequence[int], stages: Sequence[int], cores: int, gpus: int) -> list[Case]:
    """What to compare: first one process at stage 0."""
    found = []
    for n in sorted(processes):
        threads = max(1, cores // n)
        found += [Case(n, threads, n if gpus else min(cores, n * threads), stage) for stage in sorted(stages)]
    return found


class Group:
    """The processes of a training; each is a `benchmarks.arms.scale.Arm`."""

    def __init__(self, case: Case, source: str, overrides: list[str], limit: float, log: Path):
        self._limit, self._log = limit, log
        pairs = [Pipe() for _ in range(case.processes)]
        self._pipes = [mine for mine, _ in pairs]
        arguments = ([theirs for _, theirs in pairs], source, [*overrides, f"zero.stage={case.stage}"])
        threads = {"OMP_NUM_THREADS": str(case.threads)}
        self._processes = workers.start(rank, *arguments, ranks=case.processes, log=log, environment=threads)

    def ask(self, order: str, *arguments: Any) -> list[Any]:
        """What each rank answers. Raises FailedError."""
        for pipe in self._pipes:
            with contextlib.suppress(BrokenPipeError):  # what it died of is told by `answers`
                pipe.send((order, arguments))
        return self.answers()

    def answers(self) -> list[Any]:
        """One of each rank. Raises FailedError if a process ends before that, or none comes in time."""
        deadline, found = time.monotonic() + self._limit, []
        for pipe in self._pipes:
            ready = wait([pipe, *(process.sentinel for process in self._processes)], max(0, deadline - time.monotonic()))
            if pipe not in ready:
                said = last_line(self._log, 0)
                raise FailedError(said or "a process ended" if ready else f"no answer after {self._limit:.0f} s: {said}")
            found.append(pipe.recv())
        return found

    def close(self) -> None:
        for process in self._processes:
            process.kill()
            process.join()


def train(
    compared: Sequence[Case], source: str, overrides: list[str], rounds: int, limit: float, folder: Path
) -> dict[Case, dict[str, Any]]:
    """For each case what its ranks said, under `updates`, `sent` and `memory`, and its file of `weights`; or an `error`.

    folder/start.safetensors has the weights before the first update; `weights` are those before the timed ones.
    """
    found: dict[Case, dict[str, Any]] = {case: {"updates": []} for case in compared}
    groups: dict[Case, Group] = {}

    def each(work: Callable[[Case, dict[str, Any]], None]) -> None:
        for case in compared:
            if "error" not in found[case]:
                try:
                    work(case, found[case])
                except FailedError as error:
                    found[case]["error"] = str(error)

    def start(case: Case, said: dict[str, Any]) -> None:
        groups[case] = group = Group(case, source, overrides, limit, folder / f"{case.processes}-{case.stage}.log")
        group.answers()
        if case == compared[0]:
            group.ask("save", folder / "start.safetensors")
        said["sent"] = max(group.ask("count"))
        for _ in range(WARM):
            group.ask("update")
        said["weights"] = folder / f"{case.processes}-{case.stage}.safetensors"
        group.ask("save", said["weights"])
        print(f"{case} is ready", file=sys.stderr, flush=True)

    def end(case: Case, said: dict[str, Any]) -> None:
        said["memory"] = max(groups[case].ask("memory"))

    try:
        each(start)
        for _ in range(rounds):
            each(lambda case, said: said["updates"].append(groups[case].ask("update")))
        each(end)
    finally:
        for group in groups.values():
            group.close()
    return found


def rows(config: RunConfig, found: dict[Case, dict[str, Any]], folder: Path) -> Iterator[dict[str, Any]]:
    """The table, in the order of `found`."""
    first = next(iter(found))
    sizes = network_sizes(config)
    for case, said in found.items():
        row: dict[str, Any] = {"processes": case.processes, "threads": case.threads, "stage": case.stage}
        if error := said.get("error") or found[first].get("error"):
            yield row | {"error": error}
            continue
        if skipped := sum(update[0]["skipped"] for update in said["updates"]):
            yield row | {"error": f"{skipped:.0f} optimiser steps were skipped: their gradients are not finite"}
            continue
        row |= figures(said["updates"], found[first]["updates"], config.batch.global_batch * config.batch.d_steps)
        staged = replace(config, zero=replace(config.zero, stage=case.stage))  # type: ignore[arg-type]
        planned = messages(staged, plan_batch(config.batch, case.processes), *sizes)
        row |= {"efficiency": row["ratio"] * first.devices / case.devices, "MB": said["sent"] / 1e6}
        row |= {"MB, plan": sum(planned.values()) / 1e6, "GB": said["memory"] / 1e9}
        yield row | {"apart": apart(folder / "start.safetensors", found[first]["weights"], said["weights"])}


def figures(updates: list[list[dict[str, float]]], base: list[list[dict[str, float]]], images: int) -> dict[str, float]:
    """Of the answers of all ranks in all rounds, beside those of the first row; an update has `images` images."""
    ours, theirs = ([max(rank["seconds"] for rank in ranks) for ranks in each] for each in (updates, base))
    ratios = sorted(theirs / ours for theirs, ours in zip(theirs, ours, strict=True))
    seconds, communication = (sum(rank[key] for ranks in updates for rank in ranks) for key in ("seconds", "communication"))
    found = {"images/s": images / median(ours), "s/update": median(ours), "communication": communication / seconds}
    return found | {"ratio": median(ratios), "least": ratios[0], "most": ratios[-1]}


def apart(start: Path, base: Path, ours: Path) -> float:
    """The larger distance of G or D to that in `base`, over how far that is from `start`."""
    before, expected, found = (safetensors.torch.load_file(file) for file in (start, base, ours))
    return max(distance(found, expected, name) / distance(before, expected, name) for name in ("G", "D"))


def plans(gpus: Sequence[int]) -> list[dict[str, Any]]:
    """What `biggan plan` says of so many GPUs; efficiency is images/s of a GPU over those of the first row."""
    found: list[dict[str, Any]] = []
    for n in gpus:
        machines = ["--nodes", str(max(1, n // NODE)), "--gpus", str(min(n, NODE))]
        with contextlib.redirect_stdout(io.StringIO()) as out:
            if code := cli.main(["plan", *PLAN, *machines, "--json"]):
                raise RuntimeError(f"biggan plan {' '.join(PLAN + machines)} ended with {code}")
        said = json.loads(out.getvalue())
        update, batch = said["compute_seconds"] + said["communication_seconds"], said["batch"]
        row = {"GPUs": n, "micro-batch": batch["micro_batch"], "images/s": said["images_per_second"]}
        row |= {"s/update": update, "communicating": said["communication_seconds"] / update}
        row |= {"GB sent": sum(said["messages"].values()) / 1e9, "norm messages": said["norm_collectives"]}
        found.append(row | {"GiB": said["total_memory"] / 2**30})
        found[-1]["efficiency"] = row["images/s"] / n / (found[0]["images/s"] / found[0]["GPUs"])
    return found


def reached(measured: Sequence[dict[str, Any]]) -> float | None:
    """Efficiency of two processes at stage 1, if that is a row."""
    return next((row.get("efficiency") for row in measured if (row["processes"], row["stage"]) == (2, 1)), None)


def good(measured: Sequence[dict[str, Any]], precision: str) -> bool:
    """Whether all was measured, all trained the same (judged in fp32), and the bar is reached if there is a row for it."""
    same = all("error" not in row and (row["apart"] <= LIMIT or precision == "bf16") for row in measured)
    return same and ((efficiency := reached(measured)) is None or efficiency >= BAR)


def main() -> int:
    gpus, cores = torch.cuda.device_count(), len(os.sched_getaffinity(0))
    base = [*([] if gpus else SMALL), *BATCH]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__, formatter_class=HELP)
    parser.add_argument("config", metavar="CONFIG", nargs="?", help=f"preset or file (default: {PRESET} {' '.join(base)})")
    parser.add_argument("overrides", metavar="key=value", nargs="*", help="such as batch.global_batch=128")
    few = [n for n in (1, 2, 4, 8) if n <= (gpus or 4)]
    parser.add_argument("--processes", type=int, nargs="+", default=few, metavar="N", help=f"(default: {few})")
    parser.add_argument("--stages", type=int, nargs="+", default=[0, 1, 2, 3], choices=range(4), help="(default: all)")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="timed updates of each row (default: 5)")
    parser.add_argument("--cores", type=int, default=cores, metavar="N", help="that all processes share (default: all)")
    parser.add_argument("--limit", type=float, default=600, metavar="SECONDS", help="for one answer (default: 600)")
    parser.add_argument("--gpus", type=int, nargs="*", default=GPUS, metavar="N", help="of the plan (default: 8 ... 512)")
    args, rest = parser.parse_known_args()
    if any(part.startswith("-") or "=" not in part for part in rest):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    source, overrides = args.config, [*args.overrides, *rest]
    if source is None or "=" in source:
        source, overrides = PRESET, [*base, *([source] if source else []), *overrides]
    _check(parser, args, gpus)
    try:
        config = load_config(source, overrides)
        for n in args.processes:
            plan_batch(config.batch, n)
    except ConfigError as error:
        parser.error(str(error))
    if not gpus:
        os.environ |= ON_A_CPU  # as `biggan train` sets it for its workers
    compared = cases(args.processes, args.stages, args.cores, gpus)
    with tempfile.TemporaryDirectory(prefix="biggan-scale-") as name:
        found = train(compared, source, overrides, args.rounds, args.limit, Path(name))
        measured = list(rows(config, found, Path(name)))
    print("\n".join(table(measured)), end="\n\n")
    planned, ok = plans(args.gpus), good(measured, config.precision)
    said = {"config": source, "overrides": overrides, "rounds": args.rounds, "cores": args.cores, "GPUs": gpus}
    said |= {"bar": BAR, "reached": reached(measured), "limit": LIMIT, "rows": measured, "plan": planned}
    report("scale", planned, said, ok)
    return 0 if ok else 1


def _check(parser: argparse.ArgumentParser, args: argparse.Namespace, gpus: int) -> None:
    """End with a message about numbers that cannot be."""
    if 1 not in args.processes or 0 not in args.stages:
        parser.error("--processes and --stages: 1 and 0 must be among them, with which the others are compared")
    for name in ("rounds", "cores", "processes", "gpus"):
        numbers = value if isinstance(value := getattr(args, name), list) else [value]
        if any(number < 1 for number in numbers):
            parser.error(f"--{name} {' '.join(map(str, numbers))}: must be at least 1")
    if gpus and max(args.processes) > gpus:
        parser.error(f"--processes {max(args.processes)}: this machine has {gpus} GPUs, and each process takes one")
    if odd := [n for n in args.gpus if n > NODE and n % NODE]:
        parser.error(f"--gpus {odd[0]}: nodes have {NODE} GPUs; type a multiple of that")


if __name__ == "__main__":
    sys.exit(main())
