"""`python -m benchmarks.kill --kills N --seed S`: kill ranks N times while they save, and compare with a run without kills.

A tiny BigGAN trains in 2 processes (ZeRO-1, gloo, fp32) and saves at every update. SIGKILL hits one rank or all. Half of the
kills come at a named place inside a save (`pipeline.checkpoint.failpoints`), half at a moment that the seed decides.

Every restart must find an intact checkpoint, no older than the newest committed one. In the end all tensors must be the same,
bit for bit. The run then continues with 4 ranks, and after that with 1. Every batch must have the same images, and losses must
be within 1e-4 of those of 2 ranks.

The ranks are forks (`benchmarks.support.workers`). `benchmarks.kill_command` kills the whole command with its launcher.
"""

import argparse
import os
import random
import re
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import yaml

from benchmarks.support import workers
from benchmarks.support.patterns import pack_patterns
from benchmarks.support.report import report
from pipeline import variables
from pipeline.checkpoint import failpoints, format
from pipeline.tracking import journal
from pipeline.tracking.records import MetricsRecord

BATCH, STEPS = 16, 5
HANGS = 300.0
"""Seconds without a line in the log after which an attempt is taken to hang."""
OF_RANK_0 = ("fence", "commit", "committed", "retain")
OF_OTHERS = ("reported",)

CONFIG: dict[str, Any] = {
    "model": {"resolution": 32, "num_classes": 4, "channels": 3, "ch": 2, "shared_dim": 8, "z_dim": 16},
    # Two micro-steps, and batch-norm groups that span both ranks: what a kill may interrupt.
    "batch": {"global_batch": BATCH, "micro_batch": 4, "norm_group": 8},
    "optim": {"g_lr": 1e-3, "d_lr": 1e-3, "ema_half_life": 1000},
    "checkpoint": {"every": BATCH},
    "tracking": {"mode": "off"},
    "zero": {"stage": 1},
    "precision": "fp32",
    "log_every": BATCH,
    "sample_every": 0,
}


@dataclass(frozen=True)
class Kill:
    """A kill of one rank or of all (`rank` None), at a fail point or so many seconds after the start."""

    rank: int | None
    place: str | None
    count: int
    delay: float

    @property
    def name(self) -> str:
        return f"{self.place}:{self.count}" if self.place else f"after {self.delay:.2f} s"


def plan(kills: int, rng: random.Random, seconds: float) -> list[Kill]:
    """Plan kills of one rank or all: half at the fail points in turn, half within the first `seconds` of an attempt."""
    planned = []
    for i in range(kills):
        rank = rng.randrange(2) if rng.random() < 0.5 else None
        if i % 2:
            planned.append(Kill(rank, None, 0, rng.uniform(0, seconds)))
        else:
            place = failpoints.NAMES[i // 2 * 4 % len(failpoints.NAMES)]  # a few kills are all over a save
            planned.append(Kill(rank, place, rng.randint(1, 2), 0.0))
    rng.shuffle(planned)
    return planned


def work(config: str, overrides: list[str], samples: str | None) -> None:
    """Train on one rank. With `samples`, write there which image it took at which position."""
    if samples:
        from pipeline.data.loader import DataLoader, MicroBatch

        take = DataLoader.__next__

        def recorded(stream: DataLoader) -> MicroBatch:
            batch = take(stream)
            with open(samples, "a") as file:  # appended in one write: lines of several ranks do not mix
                file.write("".join(f"{p} {s}\n" for p, s in zip(batch.positions, batch.samples, strict=True)))
            return batch

        DataLoader.__next__ = recorded  # type: ignore[method-assign]
    from jobs import cli

    sys.exit(cli.main(["train", config, *overrides]))


@dataclass
class Attempt:
    """One start of all ranks."""

    ranks: list[ForkServerProcess]
    log: Path
    began: float
    _last: tuple[int, float] = (0, 0.0)

    def until(self, reached: Callable[[], bool]) -> None:
        """Wait until `reached`, or the end of a rank."""
        while not reached() and all(rank.is_alive() for rank in self.ranks):
            size, now = self.log.stat().st_size if self.log.exists() else 0, time.monotonic()
            if size != self._last[0]:
                self._last = size, now
            if now - max(self.began, self._last[1]) > HANGS:
                self.kill(self.ranks)
                raise SystemExit(f"benchmarks.kill: nothing happened for {HANGS:.0f} s:\n{self.text[-3000:]}")
            time.sleep(0.005)

    def kill(self, ranks: list[ForkServerProcess]) -> None:
        for rank in ranks:
            rank.kill()
        for rank in ranks:
            rank.join()

    @property
    def text(self) -> str:
        return self.log.read_text() if self.log.exists() else ""

    @property
    def first(self) -> int | None:
        """Images at which it continued the training; None if it did not get that far."""
        found = re.search(r"(?:from|at) image ([\d,]+) of", self.text)
        return int(found[1].replace(",", "")) if found else None


def start(folder: Path, run: str, ranks: int, *overrides: str, environment: dict[str, str] | None = None) -> Attempt:
    number = len(list(folder.glob(f"{run}.*.log")))
    log = folder / f"{run}.{number:03d}.log"
    options = [f"run={folder / run}", *overrides]
    processes = workers.start(
        work, str(folder / "tiny.yaml"), options, str(folder / f"{run}.samples"), ranks=ranks, log=log, environment=environment
    )
    return Attempt(processes, log, time.monotonic())


def finish(attempt: Attempt) -> float:
    """Wait for the end and return the seconds. Raises SystemExit if a rank fails."""
    attempt.until(lambda: False)
    for rank in attempt.ranks:
        rank.join(60)
    if any(rank.exitcode for rank in attempt.ranks):
        attempt.kill(attempt.ranks)
        raise SystemExit(f"benchmarks.kill: exit codes {[r.exitcode for r in attempt.ranks]}:\n{attempt.text[-3000:]}")
    return time.monotonic() - attempt.began


def kill_once(folder: Path, total: int, kill: Kill, rng: random.Random) -> tuple[Attempt, bool]:
    """Start, kill, and clear up as a launcher does; return whether the kill hit a running rank."""
    rank = kill.rank
    if kill.place in OF_RANK_0 + OF_OTHERS:
        rank = 0 if kill.place in OF_RANK_0 else 1
    environment = {variables.FAIL_AT: f"{kill.place}:{kill.count}:{rank or 0}"} if kill.place else {}
    attempt = start(folder, "killed", 2, f"total_images={total}", environment=environment)
    due = attempt.began + kill.delay
    attempt.until(lambda: kill.place is None and time.monotonic() >= due)
    if kill.place is None:
        attempt.kill([r for i, r in enumerate(attempt.ranks) if kill.rank in (None, i)])
    if kill.rank is not None:
        time.sleep(rng.uniform(0, 0.3))  # a launcher takes a moment to notice that a rank is gone
    attempt.kill(attempt.ranks)
    return attempt, any(r.exitcode == -signal.SIGKILL for i, r in enumerate(attempt.ranks) if rank in (None, i))


def hashes(run: Path, images: int) -> dict[str, str]:
    """Return the sha256 of each file of tensors in the last checkpoint. Raises SystemExit if that is not the run's end."""
    last = format.newest(str(run / "checkpoints"))
    if last is None or last.images != images:
        raise SystemExit(f"benchmarks.kill: {run} did not reach {images} images")
    return {name: row.sha256 for name, row in last.files.items() if name.endswith(".safetensors")}


def other_ranks(folder: Path) -> tuple[dict[str, bool], float]:
    """Continue with 4 ranks, then with 1, and compare with 2 ranks; return what must hold, and the losses' distance."""
    marks = [STEPS * BATCH * n for n in (1, 2, 3)]
    # Other ranks add up in another order, and Adam makes a whole step of a gradient's sign: a small one.
    gently = [f"optim.{key}={1e-5}" for key in ("g_lr", "d_lr")]
    finish(start(folder, "same", 2, f"total_images={marks[2]}", *gently))
    for images, ranks, micro in zip(marks, (2, 4, 1), (4, 4, 8), strict=True):
        finish(start(folder, "changed", ranks, f"total_images={images}", f"batch.micro_batch={micro}", *gently))
    samples, losses = [], []
    for run in ("same", "changed"):
        samples.append(sorted(tuple(map(int, line.split())) for line in (folder / f"{run}.samples").read_text().splitlines()))
        rows = [row for row, _ in journal.read(folder / run) if isinstance(row, MetricsRecord) and "loss/d" in row.metrics]
        losses.append({(row.step, key): row.metrics[key] for row in rows for key in ("loss/d", "loss/g")})
    distance = max(abs(losses[0][at] - losses[1][at]) for at in losses[0]) if losses[0].keys() == losses[1].keys() else 1e9
    checks = {
        "2 -> 4 -> 1 ranks: every image once, in the same place": samples[0] == samples[1] and len(samples[0]) == marks[2],
        f"2 -> 4 -> 1 ranks: losses of {len(losses[0]) // 2} steps within 1e-4": distance <= 1e-4,
    }
    return checks, distance


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.kill", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=10, help="kills of one training (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="decides what is killed, and when (default: %(default)s)")
    args = parser.parse_args()
    rng = random.Random(args.seed)
    began = time.monotonic()
    total = BATCH * (3 * args.kills + 5)
    with tempfile.TemporaryDirectory(prefix="biggan-kill-") as name:
        folder = Path(name)
        (folder / "tiny.yaml").write_text(
            yaml.safe_dump(CONFIG | {"total_images": total, "data": {"uri": pack_patterns(folder, classes=4, images=64)}})
        )
        untouched = start(folder, "untouched", 2, f"total_images={total}")
        untouched.until(lambda: untouched.first is not None)
        seconds = time.monotonic() - untouched.began
        update = (finish(untouched) - seconds) / (total / BATCH)

        rows: list[dict[str, Any]] = []
        hits, intact, going_on = Counter[str](), True, True
        for kill in plan(args.kills, rng, seconds + 3 * update):
            before = format.newest(str(folder / "killed" / "checkpoints"))
            attempt, hit = kill_once(folder, total, kill, rng)
            hits["nothing" if not hit else "one rank" if kill.rank is not None else "all ranks"] += 1
            intact &= "passing over" not in attempt.text and "has a damaged" not in attempt.text
            going_on &= attempt.first is None or attempt.first == (before.images if before else 0)
            rows.append({"killed": kill.name, "rank": "all" if kill.rank is None else kill.rank, "from image": attempt.first})
        before = format.newest(str(folder / "killed" / "checkpoints"))
        last = start(folder, "killed", 2, f"total_images={total}")
        rows.append({"killed": "no more", "from image": before.images if before else 0, "seconds": finish(last)})

        ours, wanted = hashes(folder / "killed", total), hashes(folder / "untouched", total)
        checks = {f"{file} bit for bit": ours.get(file) == digest for file, digest in wanted.items()}
        checks |= {"every kill hit": hits["nothing"] == 0, "no committed checkpoint was damaged": intact}
        checks["every restart took the newest checkpoint"] = going_on
        changed, distance = other_ranks(folder)
        checks |= changed
    ok = all(checks.values())
    figures = {
        "kills": sum(hits.values()) - hits["nothing"],
        "seed": args.seed,
        "killed": dict(hits),
        "at_fail_points": sum(":" in row["killed"] for row in rows),
        "images": total,
        "largest_loss_distance": distance,
        "checks": checks,
        "seconds": round(time.monotonic() - began, 1),
    }
    report("kill", [*rows, *({"check": check, "ok": held} for check, held in checks.items())], figures, ok)
    return 0 if ok else 1


if __name__ == "__main__":
    os.environ.setdefault("PYTHONWARNINGS", "ignore::FutureWarning")  # as `biggan train` does
    sys.exit(main())
