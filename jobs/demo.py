"""`biggan demo`: the whole line on real images, in the commands that a newcomer would type."""

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import child_imports
from pipeline.errors import ConfigError, StorageError

HELP = "the whole line on real images: shards, training, evaluation, registry, samples"

NAME, ALIAS = "fashion-mnist", "challenger"

LEAST_ACCURACY = 0.85
"""Below it, some class is not drawn: two confused classes alone cost up to 0.10."""
MOST_FID = 80.0
"""Real images against real images give 0.4, a blur of two pixels 126: above 80, samples are not sharp or not varied."""
LEAST_JUDGE = 0.90
"""On real test images; a judge that errs more often is no measure of samples."""

NEEDED_BYTES = 400_000_000
"""Twice what was measured: shards 160 MB, a run with its checkpoints and its MLflow store 20."""


@dataclass(frozen=True)
class DemoStep:
    """One command and what it is for."""

    title: str
    words: tuple[str, ...]
    """After `biggan`."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See `jobs.cli.Command`."""
    parser.add_argument("--folder", type=Path, default=Path("demo"), help="where to (default: %(default)s)")


def run(args: argparse.Namespace) -> int:
    """Do each step, then say how good the samples are and what to type next. The same again goes on where it was."""
    check_disk(args.folder)
    return show(args.folder, steps(args.folder, NAME, NAME))


def steps(folder: Path, source: str, config: str) -> list[DemoStep]:
    """The commands, in order; each one finds by itself what it has done before. `config` is a preset or a YAML file."""
    shards, trained = folder / "shards", folder / "run"
    judge = ("--train", f"{shards}/train", "--test", f"{shards}/test", "--extractor", f"{NAME}-clf")
    sample = (f"models:/{NAME}@{ALIAS}", str(folder / "samples.png"), "--tracking-uri", str(trained))
    return [
        DemoStep("pack the images, training and test apart", ("shard", source, str(shards))),
        DemoStep("train", ("train", config, f"run={trained}", f"data.uri={shards}/train")),
        DemoStep("judge its samples", ("evaluate", str(trained), *judge)),
        DemoStep("register it", ("register", str(trained), "--name", NAME, "--alias", ALIAS)),
        DemoStep("sample it from the registry", ("sample", *sample)),
    ]


def show(folder: Path, commands: list[DemoStep]) -> int:
    """Run `commands`, print the summary; 0 if the thresholds hold, 1 if not, else the code of the command that failed."""
    began = time.monotonic()
    spent: dict[str, float] = {}
    for number, step in enumerate(commands, 1):
        minutes, seconds = divmod(int(time.monotonic() - began), 60)
        print(
            f"\n[{minutes}:{seconds:02}] {number}/{len(commands)} {step.title}\n$ biggan {shlex.join(step.words)}", flush=True
        )
        started = time.monotonic()
        command, environment = [sys.executable, "-m", "jobs.cli", *step.words], os.environ | child_imports.child_environment()
        code = subprocess.run(command, env=environment, check=False).returncode
        spent[step.words[0]] = time.monotonic() - started
        if code:
            print(f"\ndemo: stopped at `biggan {step.words[0]}` (exit code {code}); the same command goes on from here")
            return code if code > 0 else 1
    figures = newest_figures(folder / "run")
    failures = verdict(figures)
    print("\n".join(summary(folder, figures, spent, failures)))
    return 1 if failures else 0


def check_disk(folder: Path) -> None:
    """Raises StorageError if the disk under `folder` has too little room for all that is to come, ConfigError for a file."""
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"--folder {folder} is a file: name a folder")
    there = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    free = shutil.disk_usage(there).free
    taken = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    if free + taken < NEEDED_BYTES:
        raise StorageError(
            f"the disk of {there} has {free / 1e9:.2f} GB free, the demo needs {NEEDED_BYTES / 1e9:.2f}: free some space, "
            "or name another place with `biggan demo --folder DIR`"
        )


def newest_figures(trained: Path) -> dict[str, Any]:
    """What `biggan evaluate` wrote last about the run."""
    newest = max((trained / "evaluation").glob("[0-9]" * 10 + ".json"))
    return json.loads(newest.read_text())


def fid(figures: dict[str, Any]) -> tuple[str, float]:
    """The distance with its full name."""
    return next((key, value) for key, value in figures.items() if key.startswith("FID["))


def verdict(figures: dict[str, Any]) -> list[str]:
    """The thresholds that were missed, in words."""
    name, distance = fid(figures)
    missed = []
    if figures["real"]["test_accuracy"] < LEAST_JUDGE:
        missed.append(f"the judge knows {figures['real']['test_accuracy']:.1%} of real test images, needed {LEAST_JUDGE:.0%}")
    if figures["accuracy"] < LEAST_ACCURACY:
        missed.append(f"class accuracy {figures['accuracy']:.1%}, needed {LEAST_ACCURACY:.0%}")
    if not distance <= MOST_FID:
        missed.append(f"{name} {distance:.1f}, allowed {MOST_FID:.0f}")
    return missed


def summary(folder: Path, figures: dict[str, Any], spent: dict[str, float], failures: list[str]) -> list[str]:
    """What came out, and three commands to go on with, as lines."""
    name, distance = fid(figures)
    worst = figures["worst_class"]
    total = sum(spent.values())
    binaries = Path(sys.executable).parent
    biggan, mlflow = (_typed(binaries / program) for program in ("biggan", "mlflow"))
    store = f"sqlite:///{(folder / 'run' / 'mlflow.db').resolve()}"
    floor = figures["real"].get(f"{name} of training images")  # None where there are fewer of them than samples
    sample = f"models:/{NAME}@{ALIAS} {shlex.quote(str(folder / 'truncated.png'))}"
    return [
        "",
        f"after {figures['images']:,} images, {figures['samples']:,} samples against real test images that training never saw:",
        f"  class accuracy  {figures['accuracy']:.1%}   (real images {figures['real']['test_accuracy']:.1%})",
        f"  worst class     {worst}, {figures['class_accuracy'][worst]:.1%}",
        f"  {name}  {distance:.1f}" + ("" if floor is None else f"   (real images {floor:.2f})"),
        f"time {total / 60:.1f} min: " + ", ".join(f"{step} {seconds / total:.0%}" for step, seconds in spent.items()),
        f"samples, classes as columns: {folder / 'samples.png'}",
        *(f"NOT GOOD ENOUGH: {failure}" for failure in failures),
        "",
        "next:",
        f"  {mlflow} ui --backend-store-uri {shlex.quote(store)}",
        f"  {biggan} sample {sample} --truncation 0.7 --tracking-uri {shlex.quote(str(folder / 'run'))}",
        f"  {biggan} train {NAME} run={shlex.quote(str(folder / 'run-2'))} "
        f"data.uri={shlex.quote(str(folder / 'shards' / 'train'))} seed=1",
    ]


def _typed(program: Path) -> str:
    """How to type a program's name here: bare if the shell finds this one, else its path."""
    found = shutil.which(program.name)
    if found and Path(found).resolve() == program.resolve():
        return program.name
    relative = os.path.relpath(program)
    return str(program) if relative.startswith("..") else relative
