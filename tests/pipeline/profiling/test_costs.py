"""`pipeline.profiling.costs` against what a training really takes, and its arithmetic."""

import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config import RunConfig, build, load_config
from pipeline.engine.batch import BatchPlan
from pipeline.engine.zero import ZeroConfig
from pipeline.profiling.costs import Costs, Machines, Sizes, costs, memory, messages, network_sizes, norm_collectives, steps
from pipeline.profiling.devices import DEVICES
from pipeline.profiling.step_memory import LiveBytes, StepMemory, step_memory
from tests.support.measured_step import ENVIRONMENT
from tests.support.servers import free_port

TREE: dict[str, Any] = {
    "run": "none",
    "total_images": 1000,
    "data": {"uri": "none"},
    "precision": "fp32",
    "model": {"resolution": 32, "num_classes": 10, "ch": 24, "shared_dim": 32},
    "batch": {"global_batch": 64, "micro_batch": 64, "norm_group": 64},
}
STEPS = {
    "fp32": {},
    "accumulated": {"batch": {"global_batch": 128, "micro_batch": 64, "norm_group": 32}, "zero": {"stage": 0}},
    "recomputed": {"activation_checkpointing": "blocks", "zero": {"stage": 2}},
    "bf16": {"precision": "bf16"},
}


@pytest.fixture(scope="module")
def measured() -> dict[str, dict[str, int]]:
    port = str(free_port())
    trees = json.dumps([TREE | tree for tree in STEPS.values()])
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.measured_step", trees],
        cwd=Path(__file__).parents[3],
        env=os.environ | ENVIRONMENT | {"MASTER_PORT": port},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return dict(zip(STEPS, json.loads(done.stdout.splitlines()[-1]), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("name", STEPS)
def test_the_memory_of_a_training_step_is_predicted_within_a_tenth(name: str, measured: dict[str, dict[str, int]]) -> None:
    config = build(TREE | STEPS[name])
    plan = BatchPlan(config.batch.global_batch, 64, config.batch.global_batch // 64, 1, config.batch.norm_group)
    parts = memory(config, plan, *network_sizes(config), step_memory(config, plan))
    step = parts.pop("gradients") + parts.pop("activations")
    found = measured[name]
    assert sum(parts.values()) == pytest.approx(found["persistent"], rel=0.03)
    assert sum(parts.values()) + step == pytest.approx(found["persistent"] + found["step"], rel=0.1)


def test_live_bytes_are_those_of_what_is_kept() -> None:
    with LiveBytes() as live:
        x = torch.ones(1000)
        y = x * 2
        assert live.now == 8000
        y.add_(1)
        z = y[:10]
        del y
        assert live.now == 8000
        del z
        assert live.now == 4000
        (x * 2 + 1).sum()
    assert live.now == 4000 and live.peak == 12_000


def sizes(parameters: int) -> Sizes:
    return Sizes(parameters, 0, 5)


@pytest.mark.long
@given(st.integers(1, 10**9), st.integers(1, 10**9), st.integers(1, 1024), st.integers(1, 8))
def test_a_higher_stage_takes_less_memory_and_more_messages(g: int, d: int, ranks: int, times: int) -> None:
    config, plan = build(TREE), BatchPlan(64 * ranks * times, 64, times, ranks, 64)
    stages = [replace(config, zero=ZeroConfig(stage)) for stage in (0, 1, 2, 3)]  # type: ignore[arg-type]
    moved = [sum(messages(c, plan, sizes(g), sizes(d)).values()) for c in stages]
    assert moved[0] <= moved[1] <= moved[2] and (ranks > 1 or not any(moved))
    kept = [memory(c, plan, sizes(g), sizes(d), StepMemory(0, 0)) for c in stages]
    assert sum(kept[1].values()) >= sum(kept[2].values()) - 8 * 25_000_000
    for part in ("moments", "EMA"):
        assert kept[3][part] == pytest.approx(kept[0][part] / ranks)


def test_messages_of_two_ranks_by_hand() -> None:
    config = replace(build(TREE), zero=ZeroConfig(1))
    config = replace(config, batch=replace(config.batch, d_steps=2))
    # Half of a network to reduce-scatter or gather it: 4 bytes x (2 x 300 D + 100 G) x 1/2, gradients all-reduced.
    found = messages(config, BatchPlan(64, 8, 4, 2, 8), sizes(100), sizes(300))
    assert found == {"gradients": 4 * 700, "parameters": 2 * 700}
    # At stage 3 in each of 4 micro-steps: D's two gathers and G's one, in two D steps; two of each in a G step; and once in a
    # step, for power iteration, the network that learns.
    config = replace(config, zero=ZeroConfig(3))
    found = messages(config, BatchPlan(64, 8, 4, 2, 8), sizes(100), sizes(300))
    gathered = 4 * (2 * (2 * 300 + 100) + 2 * 100 + 2 * 300) + 2 * 300 + 100
    assert found == {"gradients": 2 * 4 * 700, "parameters": 2 * gathered}
    regularised = replace(config, objective=replace(config.objective, ortho=1e-4))
    assert messages(regularised, BatchPlan(64, 8, 4, 2, 8), sizes(100), sizes(300))["parameters"] == 2 * (gathered + 100)
    assert norm_collectives(config, BatchPlan(64, 8, 4, 2, 16), sizes(1), Sizes(1, 0, 0)) == 4 * (2 * 5 + 2 * 5)
    assert norm_collectives(config, BatchPlan(64, 8, 4, 2, 8), sizes(1), sizes(1)) == 0


@pytest.mark.long
def test_time_and_money_are_what_the_parts_give() -> None:
    config = build(TREE | {"batch": {"global_batch": 64, "norm_group": 8, "d_steps": 2}, "total_images": 10**9})
    found = costs(config, Machines(nodes=2, gpus=4, flops=1e12, bandwidth=1e9, store=1e6))
    assert found.batch == BatchPlan(64, 8, 1, 8, 8)
    assert found.compute_seconds == pytest.approx(found.flops_per_image * 128 / 8 / 1e12)
    assert found.communication_seconds == pytest.approx(sum(found.messages.values()) / 1e9)
    assert found.images_per_second == pytest.approx(128 / (found.compute_seconds + found.communication_seconds))
    assert found.hours == pytest.approx(1e9 / found.images_per_second / 3600) and found.gpu_hours == found.hours * 8
    assert found.checkpoint_seconds == found.checkpoint / 1e6
    again = costs(
        replace(config, activation_checkpointing="blocks"), Machines(nodes=2, gpus=4, flops=1e12, bandwidth=1e9, store=1e6)
    )
    assert again.flops_per_image == found.flops_per_image
    assert 1.2 < again.computed_per_image / found.flops_per_image < 4 / 3
    assert again.memory["activations"] < 0.8 * found.memory["activations"]


@pytest.mark.gpu
@pytest.mark.slow
def test_the_time_of_a_step_on_this_gpu_is_predicted_within_a_quarter(shards: Path, tmp_path: Path) -> None:
    """At the MFU that a short run reports, a plan of another micro-batch: 128 of BigGAN-64 from 64."""
    speeds = {micro: gpu_run(shards, tmp_path / str(micro), micro) for micro in (64, 128)}
    config, reported = speeds[64]
    reached = reported["mfu"] * json.loads((tmp_path / "64/efficiency.json").read_text()).popitem()[1]["peak"]
    config = replace(config, batch=replace(config.batch, micro_batch=128, global_batch=128, norm_group=128))
    device = DEVICES["h100"]
    found = costs(config, Machines(nodes=1, gpus=1, flops=reached, bandwidth=device.link, store=1e9))
    assert found.images_per_second == pytest.approx(speeds[128][1]["images_per_second"], rel=0.25)
    assert found.total_memory == pytest.approx(speeds[128][1]["memory/peak_gb"] * 1e9, rel=0.25)


def gpu_run(shards: Path, run: Path, micro: int) -> tuple[RunConfig, dict[str, float]]:
    """The last report of a short training of a BigGAN-64 on one GPU."""
    images = 40 * micro
    arguments = [f"run={run}", f"data.uri={shards}", "data.resolution=64", "model.num_classes=4", "processes=1"]
    arguments += [f"batch.{key}={micro}" for key in ("global_batch", "micro_batch", "norm_group")]
    arguments += [f"total_images={images}", f"log_every={images // 2}", f"checkpoint.every={images}", "sample_every=0"]
    arguments += ["tracking.mode=off", "data.lanes=48"]
    subprocess.run([sys.executable, "-m", "jobs.cli", "train", "biggan-64", *arguments], check=True)
    records = [json.loads(line) for line in (run / "journal.jsonl").read_text().splitlines()]
    return load_config("biggan-64", arguments), [r["metrics"] for r in records if "metrics" in r][-1]


@pytest.mark.long
def test_auto_takes_the_largest_micro_batch_that_fits() -> None:
    def planned(micro_batch: int | str, memory: float = math.inf) -> Costs:
        batch = {"global_batch": 64, "norm_group": 4, "micro_batch": micro_batch}
        asked, told = (
            (build(TREE | {"batch": batch}), Machines(nodes=1, gpus=2, flops=1e12, bandwidth=1e9, store=1e6, memory=memory)),
            list[int](),
        )
        found = costs(*asked, told.append)
        assert sum(told) == steps(*asked)
        return found

    assert planned("auto").batch.micro_batch == 32
    assert planned("auto", memory=0).batch.micro_batch == 2
    assert planned("auto", memory=planned(8).total_memory / 0.89).batch.micro_batch == 8
