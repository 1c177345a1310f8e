"""`python -m benchmarks.kill_command --kills N --seed S`: kill a training command N times, and compare.

A tiny BigGAN trains in 2 processes (ZeRO-1, gloo, fp32). SIGKILL hits a worker, the launcher or everything, at a moment that
the seed decides: during the start, a step or a save. The same command then runs again.

In the end all tensors (G, D, EMA, Adam's moments) must be those of a run without kills, bit for bit. MLflow must hold one run,
with one row per metric and step.
"""

import argparse
import random
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from benchmarks.support.attempts import Attempt, Process, kill, processes_of
from benchmarks.support.patterns import pack_patterns
from benchmarks.support.report import report
from pipeline.checkpoint import format
from pipeline.liveness import started
from pipeline.tracking.delivery import Delivery
from pipeline.tracking.mlflow_store import connect

BATCH, CHECKPOINT_EVERY, TOTAL = 64, 320, 3200
TARGETS = ("worker", "launcher", "everything")
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
class Kill:
    """What is killed, and when: so long after the start, or after the line of progress that reaches `images`."""

    target: str
    images: int | None
    delay: float


def victims(root: int, target: str, rng: random.Random) -> tuple[str, list[int]]:
    """Return what to kill, and its ids: the launcher while there is no worker, everything while there is no launcher."""
    tree = processes_of(root)
    launchers = [pid for pid, command in tree.items() if "accelerate.commands.launch" in command]
    workers = [pid for pid, command in tree.items() if "jobs.cli" in command and pid not in (root, *launchers)]
    if target == "worker" and workers:
        return "worker", [rng.choice(workers)]
    if target != "everything" and launchers:
        return "launcher", launchers[:1]
    return "everything", list(tree)


def plan(kills: int, rng: random.Random, start_seconds: float, update_seconds: float) -> list[Kill]:
    """Plan one moment in each of `kills` stretches of the training, so that all come before its end; a quarter at a start."""
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


def kill_once(attempt: Attempt, planned: Kill, rng: random.Random) -> tuple[str, set[Process]]:
    """Wait for the moment and kill; return what was killed (or `nothing`) and all processes that there were."""
    if not attempt.wait_until(lambda: planned.images is None or attempt.images >= planned.images):
        return "nothing", set()
    due = time.monotonic() + planned.delay if planned.images is not None else attempt.began + planned.delay
    if not attempt.wait_until(lambda: time.monotonic() >= due):
        return "nothing", set()
    root = attempt.process.pid
    there = {Process(pid, started(pid)) for pid in processes_of(root)}
    hit, chosen = victims(root, planned.target, rng)
    kill(chosen)
    return hit, there


def train(run: Path, config: Path, uri: str) -> list[str]:
    """Return the command, which is always the same."""
    return [sys.executable, "-m", "jobs.cli", "train", str(config), f"run={run}", f"data.uri={uri}"]


def tensor_files(run: Path) -> dict[str, str]:
    """Return the sha256 of each file of tensors in the last checkpoint. Raises SystemExit if that is not the run's end."""
    last = format.newest(str(run / "checkpoints"))
    if last is None or last.images != TOTAL:
        raise SystemExit(f"benchmarks.kill_command: {run} did not reach {TOTAL} images")
    return {name: entry.sha256 for name, entry in last.files.items() if name.endswith(".safetensors")}


def recorded(run: Path) -> tuple[int, list[str], dict[str, list[tuple[int, float]]]]:
    """Return what MLflow holds: number of runs, their statuses, and (step, value) by metric, in order of steps."""
    client = connect(Delivery(run).uri)
    runs = client.search_runs([e.experiment_id for e in client.search_experiments()])
    histories = {
        key: sorted((row.step, row.value) for row in client.get_metric_history(runs[0].info.run_id, key))
        for key in runs[0].data.metrics
    }
    return len(runs), [run.info.status for run in runs], histories


def compare_tracking(killed: Path, untouched: Path) -> dict[str, bool]:
    """Return statements about MLflow, and whether each holds."""
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


def untouched(config: Path, uri: str, log: Path) -> tuple[dict[str, Any], float, float]:
    """Train once without a kill; return the row, and the seconds of the start and of an update."""
    run = log.with_name("untouched")
    attempt = Attempt(train(run, config, uri), log)
    attempt.wait_until(lambda: attempt.images >= 0)
    start_seconds = time.monotonic() - attempt.began
    code = attempt.end()
    seconds = time.monotonic() - attempt.began
    if code:
        raise SystemExit(f"benchmarks.kill_command: the untouched training failed:\n{''.join(attempt.lines)[-3000:]}")
    return (
        {"attempt": "untouched", "exit code": code, "seconds": seconds},
        start_seconds,
        (seconds - start_seconds) / (TOTAL / BATCH),
    )


@dataclass
class Killed:
    """The killed training: a row for each attempt, what was hit, and all processes that existed at a kill."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    hits: Counter[str] = field(default_factory=Counter)
    seen: set[Process] = field(default_factory=set)


def killed(command: list[str], planned: list[Kill], rng: random.Random, log: Path) -> Killed:
    """Run `command` once for each kill, and once more to its end. Raises SystemExit if that one fails."""
    found = Killed()
    for one in planned:
        attempt = Attempt(command, log)
        hit, there = kill_once(attempt, one, rng)
        code = attempt.end()
        found.hits[hit] += 1
        found.seen |= there
        seconds = time.monotonic() - attempt.began
        after = attempt.images if attempt.images >= 0 else "start-up"
        row = {"attempt": f"killed {hit}", "exit code": code, "seconds": seconds}
        found.rows.append(row | {"from image": attempt.first, "killed after": after})
    attempt = Attempt(command, log)
    code = attempt.end()
    seconds = time.monotonic() - attempt.began
    found.rows.append({"attempt": "last", "exit code": code, "seconds": seconds, "from image": attempt.first})
    if code:
        raise SystemExit(f"benchmarks.kill_command: the last attempt failed:\n{''.join(attempt.lines)[-3000:]}")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.kill_command", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
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
        row, start_seconds, update_seconds = untouched(config, uri, folder / "log")
        planned = plan(args.kills, rng, start_seconds, update_seconds)
        found = killed(train(folder / "killed", config, uri), planned, rng, folder / "log")
        ours, wanted = tensor_files(folder / "killed"), tensor_files(folder / "untouched")
        checks = {f"{file} bit for bit": ours.get(file) == digest for file, digest in wanted.items()}
        checks |= compare_tracking(folder / "killed", folder / "untouched")
        left = [process.pid for process in found.seen if process.alive()]
        checks |= {"no process left behind": not left, "every kill hit": found.hits["nothing"] == 0}
    kill(left)
    ok = all(checks.values())
    figures = {
        "kills": sum(found.hits.values()) - found.hits["nothing"],
        "killed": dict(found.hits),
        "images": TOTAL,
        "checkpoint_every": CHECKPOINT_EVERY,
        "checks": checks,
        "seconds": round(time.monotonic() - began, 1),
    }
    report("kill_command", [row, *found.rows, *({"check": check, "ok": held} for check, held in checks.items())], figures, ok)
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
