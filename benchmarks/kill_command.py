"""`python -m benchmarks.kill_command --kills N --seed S`: a training that is killed N times against one that nobody touched.

A tiny BigGAN trains in 2 processes (ZeRO-1, gloo, fp32). The same command is typed again after each kill -9: of a worker, of
the launcher, or of everything; while it starts, trains or writes a checkpoint, at moments that the seed decides. In the end
all tensors (G, D, EMA, Adam's moments) must be the same, bit for bit, and MLflow must hold one run with one row per metric
and step.
"""

import argparse
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from benchmarks.support.patterns import pack_patterns
from benchmarks.support.report import report
from pipeline.checkpoint import format
from pipeline.liveness import started
from pipeline.tracking.delivery import Delivery
from pipeline.tracking.mlflow_store import connect

BATCH, CHECKPOINT_EVERY, TOTAL = 64, 320, 3200
TARGETS = ("worker", "launcher", "everything")
HANGS = 300.0
"""Seconds after which an attempt is taken to hang."""

CONFIG: dict[str, Any] = {
    "total_images": TOTAL,
    "model": {"resolution": 32, "num_classes": 4, "channels": 3, "ch": 4, "shared_dim": 8, "z_dim": 16},
    # Two micro-steps, and batch-norm groups that span both ranks: what a kill may interrupt.
    "batch": {"global_batch": BATCH, "micro_batch": 16, "norm_group": 32},
    "optim": {"g_lr": 1e-3, "d_lr": 1e-3, "ema_half_life": 1000},
    "checkpoint": {"every": CHECKPOINT_EVERY},
    "zero": {"stage": 1},
    "precision": "fp32",
    "processes": 2,
    "log_every": BATCH,
    "sample_every": 1600,
}


@dataclass(frozen=True)
class Process:
    """A process that cannot be mistaken for a later one with its id."""

    pid: int
    started: str

    def alive(self) -> bool:
        return started(self.pid) == self.started


@dataclass(frozen=True)
class Kill:
    """What is killed, and when: so long after the start, or after the line of progress that reaches `images`."""

    target: str
    images: int | None
    delay: float


class Attempt:
    """One typing of the command; a thread keeps the lines that it prints."""

    def __init__(self, command: list[str], log: Path) -> None:
        self.began = time.monotonic()
        self.lines: list[str] = []
        self.log = log
        # A process group of its own would survive Ctrl-C on this benchmark, so the group stays; we clean up by id.
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self) -> None:
        assert self.process.stdout
        with self.log.open("a") as log:
            for line in self.process.stdout:
                self.lines.append(line)
                log.write(line)

    @property
    def images(self) -> int:
        """Of the last line of progress; -1 before training starts."""
        for line in reversed(self.lines):
            if found := re.match(r"\s*([\d,]+) img ", line) or re.search(r"(?:from|at) image ([\d,]+) of", line):
                return int(found[1].replace(",", ""))
        return -1

    @property
    def first(self) -> int | None:
        """Images at which this attempt took up the training; None if it did not get that far."""
        found = (re.search(r"(?:from|at) image ([\d,]+) of", line) for line in list(self.lines))
        return next((int(match[1].replace(",", "")) for match in found if match), None)

    def wait_until(self, reached: Callable[[], bool]) -> bool:
        """Whether `reached` before the attempt ended by itself. Raises SystemExit if it hangs."""
        while self.process.poll() is None:
            if reached():
                return True
            if time.monotonic() - self.began > HANGS:
                _kill(processes_of(self.process.pid))
                raise SystemExit(f"benchmarks.kill_command: no end after {HANGS:.0f} s; see {self.log}")
            time.sleep(0.002)
        return False

    def end(self) -> int:
        """Wait for the end; the exit code."""
        self.wait_until(lambda: False)
        # Not for the end of the output: an orphan that we are to find would keep that open.
        self.reader.join(1)
        return self.process.returncode


def processes_of(root: int) -> dict[int, list[str]]:
    """Command lines of process `root` and all that descend from it, by id."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (stat := _read(entry / "stat")):
            parents[int(entry.name)] = int(stat.rpartition(")")[2].split()[1])
    found = [root]
    for pid in found:  # grows while we walk it
        found += [child for child, parent in parents.items() if parent == pid]
    return {pid: command.split("\0") for pid in found if (command := _read(Path(f"/proc/{pid}/cmdline")))}


def victims(root: int, target: str, rng: random.Random) -> tuple[str, list[int]]:
    """What to kill, and its ids. A start that has no worker yet loses its launcher, one without launcher everything."""
    tree = processes_of(root)
    launchers = [pid for pid, command in tree.items() if "accelerate.commands.launch" in command]
    workers = [pid for pid, command in tree.items() if "jobs.cli" in command and pid not in (root, *launchers)]
    if target == "worker" and workers:
        return "worker", [rng.choice(workers)]
    if target != "everything" and launchers:
        return "launcher", launchers[:1]
    return "everything", list(tree)


def plan(kills: int, rng: random.Random, start_seconds: float, update_seconds: float) -> list[Kill]:
    """One moment in each of `kills` stretches of the training, so that all come before its end; a quarter at a start."""
    targets = [TARGETS[i % len(TARGETS)] for i in range(kills)]
    rng.shuffle(targets)
    planned = []
    for i, target in enumerate(targets):
        if rng.random() < 0.25:
            planned.append(Kill(target, None, rng.uniform(0, start_seconds)))
            continue
        images = min(rng.randint(TOTAL * i // kills, TOTAL * (i + 1) // kills), TOTAL - 3 * BATCH)
        if rng.random() < 0.5:  # where a checkpoint is written right after the line of progress
            images = max(CHECKPOINT_EVERY, images // CHECKPOINT_EVERY * CHECKPOINT_EVERY)
        planned.append(Kill(target, images, rng.uniform(0, 2 * update_seconds)))
    return planned


def kill_once(attempt: Attempt, kill: Kill, rng: random.Random) -> tuple[str, set[Process]]:
    """Wait for the moment and kill; returns what was killed (or `nothing`) and all processes that there were."""
    if not attempt.wait_until(lambda: kill.images is None or attempt.images >= kill.images):
        return "nothing", set()
    due = time.monotonic() + kill.delay if kill.images is not None else attempt.began + kill.delay
    if not attempt.wait_until(lambda: time.monotonic() >= due):
        return "nothing", set()
    root = attempt.process.pid
    there = {Process(pid, started(pid)) for pid in processes_of(root)}
    hit, chosen = victims(root, kill.target, rng)
    _kill(chosen)
    return hit, there


def train(run: Path, config: Path, uri: str) -> list[str]:
    """The command, always the same."""
    return [sys.executable, "-m", "jobs.cli", "train", str(config), f"run={run}", f"data.uri={uri}"]


def tensor_files(run: Path) -> dict[str, str]:
    """sha256 of each file of tensors in the last checkpoint. Raises SystemExit if that is not the run's end."""
    last = format.newest(str(run / "checkpoints"))
    if last is None or last.images != TOTAL:
        raise SystemExit(f"benchmarks.kill_command: {run} did not reach {TOTAL} images")
    return {name: entry["sha256"] for name, entry in last.files.items() if name.endswith(".safetensors")}


def recorded(run: Path) -> tuple[int, list[str], dict[str, list[tuple[int, float]]]]:
    """What MLflow holds: number of runs, their statuses, and (step, value) by metric, in order of steps."""
    client = connect(Delivery(run).uri)
    runs = client.search_runs([e.experiment_id for e in client.search_experiments()])
    histories = {
        key: sorted((row.step, row.value) for row in client.get_metric_history(runs[0].info.run_id, key))
        for key in runs[0].data.metrics
    }
    return len(runs), [run.info.status for run in runs], histories


def compare_tracking(killed: Path, untouched: Path) -> dict[str, bool]:
    """Statements about MLflow that must hold."""
    _, _, wanted = recorded(untouched)
    try:
        count, statuses, rows = recorded(killed)
    except Exception as error:  # whatever a store raises that a kill has broken
        print(f"MLflow's store of the killed run: {type(error).__name__}: {str(error).splitlines()[0]}")
        return {"MLflow's store is whole": False}
    measured = ("time/", "images_per_second", "mfu", "memory/", "system/")
    losses = [key for key in wanted if not key.startswith(measured)]
    return {
        "MLflow's store is whole": True,
        "one MLflow run, finished": count == 1 and statuses == ["FINISHED"],
        "one row per metric and step": all(len(h) == len({step for step, _ in h}) for h in rows.values()),
        "same steps as untouched": all([s for s, _ in rows.get(k, ())] == [s for s, _ in wanted[k]] for k in losses),
        "same losses and gradient norms": all(rows.get(key) == wanted[key] for key in losses),
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kill_command", description=__doc__)
    parser.add_argument("--kills", type=int, default=6, help="kills of one training (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="decides what is killed, and when (default: %(default)s)")
    args = parser.parse_args()
    rng = random.Random(args.seed)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="biggan-kill-command-") as name:
        folder = Path(name)
        uri = pack_patterns(folder, classes=4, images=64)
        config = folder / "tiny.yaml"
        config.write_text(yaml.safe_dump(CONFIG))
        rows: list[dict[str, Any]] = []

        attempt = Attempt(train(folder / "untouched", config, uri), folder / "log")
        attempt.wait_until(lambda: attempt.images >= 0)
        start_seconds = time.monotonic() - attempt.began
        code = attempt.end()
        rows.append({"attempt": "untouched", "exit code": code, "seconds": time.monotonic() - attempt.began})
        if code:
            raise SystemExit(f"benchmarks.kill_command: the untouched training failed:\n{''.join(attempt.lines)[-3000:]}")
        update_seconds = (time.monotonic() - attempt.began - start_seconds) / (TOTAL / BATCH)

        command, seen, hits = train(folder / "killed", config, uri), set[Process](), Counter[str]()
        for kill in plan(args.kills, rng, start_seconds, update_seconds):
            attempt = Attempt(command, folder / "log")
            hit, there = kill_once(attempt, kill, rng)
            code = attempt.end()
            hits[hit] += 1
            seen |= there
            rows.append(
                {
                    "attempt": f"killed {hit}",
                    "exit code": code,
                    "seconds": time.monotonic() - attempt.began,
                    "from image": attempt.first,
                    "killed after": attempt.images if attempt.images >= 0 else "start-up",
                }
            )
        attempt = Attempt(command, folder / "log")
        code = attempt.end()
        rows.append(
            {"attempt": "last", "exit code": code, "seconds": time.monotonic() - attempt.began, "from image": attempt.first}
        )
        if code:
            raise SystemExit(f"benchmarks.kill_command: the last attempt failed:\n{''.join(attempt.lines)[-3000:]}")

        ours, wanted = tensor_files(folder / "killed"), tensor_files(folder / "untouched")
        checks = {f"{file} bit for bit": ours.get(file) == digest for file, digest in wanted.items()}
        checks |= compare_tracking(folder / "killed", folder / "untouched")
        left = [process.pid for process in seen if process.alive()]
        checks |= {"no process left behind": not left, "every kill hit": hits["nothing"] == 0}
    _kill(left)
    ok = all(checks.values())
    figures = {
        "kills": sum(hits.values()) - hits["nothing"],
        "killed": dict(hits),
        "images": TOTAL,
        "checkpoint_every": CHECKPOINT_EVERY,
        "checks": checks,
        "seconds": round(time.monotonic() - began, 1),
    }
    report("kill_command", [*rows, *({"check": check, "ok": held} for check, held in checks.items())], figures, ok)
    return 0 if ok else 1


def _kill(pids: Iterable[int]) -> None:
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""


if __name__ == "__main__":
    sys.exit(main())
