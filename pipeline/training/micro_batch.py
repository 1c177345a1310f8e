"""`batch.micro_batch=auto`: the largest micro-batch that fits into every rank's memory, found by trying, once in a run.

A trial runs on all ranks at once, each in a child process (`pipeline.training.memory_trial`) that is thrown away: one that ran
out of memory cannot leave the others in a collective, and nothing of it is left in the processes that train.
"""

import json
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field
from typing_extensions import TypedDict

from pipeline import storage
from pipeline.config import RunConfig, flatten, to_yaml
from pipeline.engine import agreement
from pipeline.engine.batch import BatchPlan, micro_batches, plan_batch
from pipeline.engine.ranks import Ranks
from pipeline.errors import ConfigError
from pipeline.storage import small_files
from pipeline.storage.best_effort import best_effort

FILE = "micro_batch.json"
"""In a run's folder: what was found, for what, and the peaks in bytes of all that was tried (null: did not fit)."""
DOES_NOT_FIT = 3
"""Exit code of a trial."""

_Found = TypedDict("_Found", {"micro_batch": Annotated[int, Field(ge=1, le=1 << 31)], "for": dict[str, Any]})

_DEPENDS_ON = ("model.", "objective.", "zero.", "batch.", "optim.optimizer", "precision", "compile", "activation_checkpointing")
_GRACE = 10.0
"""Seconds in which the ranks of a failed trial may notice it by themselves."""
_trials = count()
"""All ranks try the same, so that these numbers agree."""


def plan_in_memory(config: RunConfig, ranks: Ranks) -> BatchPlan:
    """`plan_batch`, with `auto` as the largest micro-batch that fits. Collective. Raises ConfigError if none does."""
    batch = config.batch
    if batch.micro_batch == "auto":
        conditions = _conditions(config, ranks)
        found = _found_before(config, conditions, ranks) or _find(config, conditions, ranks)
        batch = replace(batch, micro_batch=found, memory_gb=None)
    return plan_batch(batch, ranks.world_size)


def _found_before(config: RunConfig, conditions: dict[str, Any], ranks: Ranks) -> int | None:
    """What an earlier start of this run found, so that a resume is exact; None if it was for something else."""
    found: list[int] = []
    if ranks.main and (saved := _read(Path(config.run))) and saved["for"] == conditions:
        found = [saved["micro_batch"]]
    found = agreement.from_main(list[int], found, ranks)
    return found[0] if found else None


def _read(run: Path) -> _Found | None:
    return small_files.read(_Found, run / FILE, "restore it from a copy, or delete it: the next start tries again")


def _conditions(config: RunConfig, ranks: Ranks) -> dict[str, Any]:
    """All that memory or the choice depends on, as JSON has it. Collective."""
    name = torch.cuda.get_device_name() if ranks.device.type == "cuda" else "cpu"
    keys = {key: value for key, value in flatten(config).items() if key.startswith(_DEPENDS_ON)}
    return json.loads(
        json.dumps(keys | {"world_size": ranks.world_size, "devices": sorted(set(agreement.from_all(str, name, ranks)))})
    )


def _find(config: RunConfig, conditions: dict[str, Any], ranks: Ranks) -> int:
    """Bisect: all ranks try the same micro-batch, and it fits if it fits on each."""
    candidates = micro_batches(config.batch, ranks.world_size)
    began, tried = time.monotonic(), dict[int, int | None]()
    if ranks.main:
        print(f"batch.micro_batch=auto: trying which of {', '.join(map(str, candidates))} fit into memory", flush=True)
    fits, fails = 0, len(candidates)  # all before the first fit, none from the second on
    while fits < fails:
        middle = (fits + fails) // 2 if tried else fails - 1  # where all fit, one trial is enough
        peak = tried[candidates[middle]] = _try(config, candidates[middle], ranks)
        fits, fails = (fits, middle) if peak is None else (middle + 1, fails)
    if not fits:
        batch = config.batch
        raise ConfigError(
            f"batch.micro_batch=auto: not even {candidates[0]} fit into "
            + (f"batch.memory_gb={batch.memory_gb}" if batch.memory_gb else "the free memory")
            + f" of each of {ranks.world_size} ranks: train on more ranks, with a smaller batch.norm_group={batch.norm_group}, "
            "a smaller model.ch or precision=bf16"
        )
    best = candidates[fits - 1]
    if ranks.main:
        record = {"micro_batch": best, "for": conditions, "tried": tried}
        with best_effort(Path(config.run, FILE)):
            storage.write_bytes(str(Path(config.run, FILE)), json.dumps(record, indent=1).encode())
        taken, seconds = (tried[best] or 0) / 1e9, time.monotonic() - began
        print(
            f"batch.micro_batch=auto: {best}, whose steps take {taken:.2f} GB; {len(tried)} trials took {seconds:.0f} s, and "
            f"{FILE} keeps the result",
            flush=True,
        )
    return best


def _try(config: RunConfig, micro_batch: int, ranks: Ranks) -> int | None:
    """The highest peak of any rank in bytes, or None if a rank had not enough memory. Collective."""
    name = f"trial-{next(_trials)}"
    with tempfile.TemporaryFile() as errors:
        child = subprocess.Popen(
            [sys.executable, "-m", "pipeline.training.memory_trial"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
        )
        with child:
            assert child.stdin and child.stdout
            child.stdin.write(json.dumps([to_yaml(config), micro_batch, name]).encode() + b"\n")
            child.stdin.flush()
            codes = _wait(child, ranks)
            answer = child.stdout.read()
        errors.seek(0)
        said = errors.read().decode(errors="replace")
    # Ranks in a collective with one that has left, or was killed by the kernel for its memory, fail as well.
    if DOES_NOT_FIT in codes or -9 in codes:
        return None
    if any(codes):
        raise RuntimeError(f"the trial of micro-batch {micro_batch} ended with {codes}:\n{said[-4000:]}")
    return max(agreement.from_all(int, int(answer), ranks))


def _wait(child: subprocess.Popen[bytes], ranks: Ranks) -> list[int | None]:
    """Until all ranks' children have ended, or one has failed: their exit codes, None for those that had to be killed."""
    codes: list[int | None] = [None]
    while None in codes and not any(codes):
        time.sleep(0.2)
        codes = _codes(child.poll(), ranks)
    if any(codes):
        try:
            child.wait(_GRACE)
        except subprocess.TimeoutExpired:
            child.kill()
            return _codes(None, ranks)
    return _codes(child.wait(), ranks)


def _codes(code: int | None, ranks: Ranks) -> list[int | None]:
    """The exit code of each rank's child, None for one without."""
    codes = agreement.from_all(list[int], [] if code is None else [code], ranks)
    return [found[0] if found else None for found in codes]
