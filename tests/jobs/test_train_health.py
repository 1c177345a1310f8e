"""Runs that go bad: one rank's images become NaN (BIGGAN_INJECT_NAN), and both ranks have to get over it together."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from pipeline.checkpoint import format
from pipeline.fault_tolerance.recovery import History
from pipeline.runs.run_folder import RunState, read_status
from pipeline.tracking.journal import read
from tests.support.tiny_runs import train_forked

# Updates of 64 images (two D steps of 32), a checkpoint after each; the second one in a row to be skipped is a failure.
TINY: dict[str, Any] = {
    "total_images": 320,
    "model": {"resolution": 32, "num_classes": 4, "channels": 3, "ch": 4, "shared_dim": 8, "z_dim": 16},
    "batch": {"global_batch": 32, "micro_batch": 8, "norm_group": 16, "d_steps": 2},
    "checkpoint": {"every": 64},
    "health": {"max_skips": 1},
    "tracking": {"mode": "off"},
    "log_every": 64,
    "sample_every": 0,
    "processes": 2,
    "precision": "fp32",
}


def config_of(run: Path, shards: Path) -> str:
    file = run.parent / "tiny.yaml"
    file.write_text(yaml.safe_dump(TINY | {"data": {"uri": str(shards)}}))
    return str(file)


def train(run: Path, shards: Path, nan: str, *overrides: str) -> str:
    """To a good end; what the workers said."""
    return train_forked(config_of(run, shards), run, *overrides, **({"BIGGAN_INJECT_NAN": nan} if nan else {}))


def stop(run: Path, shards: Path, nan: str, *overrides: str) -> str:
    """To the end of a run that has gone bad, which `biggan train` tells on stderr, returned, and by its code."""
    command = [sys.executable, "-m", "jobs.cli", "train", config_of(run, shards), f"run={run}", *overrides]
    environment = os.environ | ({"BIGGAN_INJECT_NAN": nan} if nan else {})
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 79, done.stderr
    return done.stderr


def events(run: Path) -> list[tuple[str, int, int]]:
    """(kind, images, rollbacks so far) of each event."""
    rows = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    return [(row["kind"], row["images"], row["rollbacks"]) for row in rows]


def final(run: Path) -> tuple[dict[str, str], int]:
    """Hashes of all tensors at the end, and the rollbacks that the checkpoint knows of."""
    found = format.newest(str(run / "checkpoints"))
    assert found and found.images == 320
    hashes = {name: row.sha256 for name, row in found.files.items() if name.endswith(".safetensors")}
    return hashes, found.progress().rollbacks


@dataclass(frozen=True)
class Healed:
    """A run with NaN in the updates 2 and 3, where it goes back to 128 images, and again in 2, which is then skipped."""

    run: Path
    said: str


@pytest.fixture(scope="module")
def healed(tmp_path_factory: pytest.TempPathFactory, shards: Path) -> Healed:
    run = tmp_path_factory.mktemp("healed") / "run"
    return Healed(run, train(run, shards, "2:1:3"))


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory, shards: Path) -> Healed:
    """A run with NaN from update 2 on, however often it goes back."""
    run = tmp_path_factory.mktemp("stopped") / "run"
    return Healed(run, stop(run, shards, "2:1:1000"))


@pytest.mark.slow
def test_both_ranks_skip_and_go_back_together_and_the_run_finishes(healed: Healed) -> None:
    assert read_status(healed.run / "status.json") == RunState("finished", 320, 0)
    assert events(healed.run) == [("skip", 192, 0), ("skip", 256, 0), ("failure", 256, 0), ("start", 128, 1), ("skip", 192, 1)]
    assert json.loads((healed.run / "health.json").read_text()) == asdict(History(1, 1, 256, 128))
    assert "failure: 2 updates in a row had NaN or infinite gradients: failure 1 of at most 3 in a row" in healed.said
    assert final(healed.run)[1] == 1
    journal = [json.loads(line) for line in (healed.run / "journal.jsonl").read_text().splitlines()]
    assert [r["close"] for r in journal if "close" in r] == ["FAILED", "FINISHED"]
    assert [r["artifact"] for r in journal if "artifact" in r] == [
        "events.jsonl"
    ] * 3  # the failure, and the end of each attempt
    assert next(r["metrics"]["skipped/d"] for r in journal if r.get("step") == 192 and "skipped/d" in r["metrics"]) == 1


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 2, 3])
def test_at_each_stage_of_zero_the_same_happens(stage: int, healed: Healed, tmp_path: Path, shards: Path) -> None:
    run = tmp_path / "run"
    train(run, shards, "2:1:3", f"zero.stage={stage}")
    assert events(run) == events(healed.run)
    mine, other = (format.newest(str(r / "checkpoints")) for r in (run, healed.run))
    assert mine and other and mine.progress() == other.progress() and mine.parts == other.parts
    for part in ("generator", "discriminator", "ema"):
        found, wanted = mine.tensors(part), other.tensors(part)
        # Batch norm's own statistics are NaN until somebody pools them.
        pairs = [(t, wanted[name]) for name, t in found.items() if not name.endswith((".mean", ".var"))]
        apart, size = (torch.stack(parts).norm() for parts in zip(*(((a - b).norm(), b.norm()) for a, b in pairs), strict=True))
        assert apart < 1e-3 * size, part


@pytest.mark.slow
def test_going_back_equals_a_new_start_from_the_checkpoint_with_another_order(
    healed: Healed, stopped: Healed, tmp_path: Path, shards: Path
) -> None:
    again = tmp_path / "run"
    for name in ("run.json", "config.yaml"):
        again.mkdir(exist_ok=True)
        shutil.copy(stopped.run / name, again)
    (saved,) = (stopped.run / "checkpoints").glob("0000000128*")
    shutil.copytree(saved, again / "checkpoints" / saved.name)
    (again / "health.json").write_text(json.dumps(asdict(History(1, 1, 256, 128))))
    train(again, shards, "2:1:1")
    assert final(again) == final(healed.run)
    assert events(again)[0] == ("start", 128, 1)


@pytest.mark.slow
def test_three_failures_in_a_row_stop_the_run_with_a_report_and_it_can_go_on(
    healed: Healed, stopped: Healed, shards: Path
) -> None:
    assert stopped.said.count("\n") == 1
    assert "failed 3 times without getting past image 256" in stopped.said
    assert "NaN or infinite gradients" in stopped.said and "health.md" in stopped.said
    status = read_status(stopped.run / "status.json")
    assert status and (status.state, status.exit_code) == ("failed", 79)
    kinds = [(kind, rollbacks) for kind, _, rollbacks in events(stopped.run) if kind != "skip"]
    assert kinds == [("failure", 0), ("start", 1), ("failure", 1), ("start", 2), ("failure", 2), ("stop", 3)]
    report = (stopped.run / "health.md").read_text()
    assert report.count("| failure |") == 3 and "What to try" in report and "precision=fp32" in report
    assert [getattr(record, "artifact", "") for record, _ in read(stopped.run)][-2:] == ["events.jsonl", "health.md"]

    train(stopped.run, shards, "")
    (tensors, rollbacks), (others, _) = final(stopped.run), final(healed.run)
    assert rollbacks == 3
    assert all(tensors[name] != others[name] for name in tensors)  # the same checkpoint, other images from there on


@pytest.mark.slow
def test_a_collapse_that_is_to_stop_the_run_is_saved(tmp_path: Path, shards: Path) -> None:
    """G stands still and D is sure within a few updates."""
    run = tmp_path / "run"
    overrides = ["health.on_collapse=stop", "optim.g_lr=1e-9", "optim.d_lr=2e-3", "checkpoint.every=10000"]
    said = stop(run, shards, "", *overrides, "total_images=10000", "objective.loss=non-saturating")
    (kind, images, _), (last, stopped_at, _) = events(run)
    assert (kind, last, stopped_at) == ("alarm", "stop", images)
    assert f"stopped at {images:,} images, saved, because of health.on_collapse=stop: D is sure of real and fake" in said
    found = format.newest(str(run / "checkpoints"))
    assert found and found.images == images < 10000
    assert "does not come back" in (run / "health.md").read_text()
    journal = [json.loads(line) for line in (run / "journal.jsonl").read_text().splitlines()]
    metrics = [r["metrics"] for r in journal if r.get("step") == images and "metrics" in r]
    assert any("sigma/g/first" in values and values["health/rollbacks"] == 0 for values in metrics)
