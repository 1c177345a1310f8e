"""A process of its own that trains one update of each of some configurations and prints what memory that took.

Argument: a JSON list of configuration trees. Prints a list of {"persistent", "step"} in bytes: tensors that stay, and how far
the resident set rises above what it is between updates. glibc must give freed memory back (see `ENVIRONMENT`).
"""

import gc
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from model.latents import RandomStream
from pipeline.config import build
from pipeline.engine.batch import plan_batch
from pipeline.engine.objective import Pair
from pipeline.engine.ranks import Ranks, start_workers
from pipeline.engine.steps import d_step, fakes, g_step
from pipeline.training.train_state import TrainState

ENVIRONMENT = {
    "RANK": "0",
    "LOCAL_RANK": "0",
    "WORLD_SIZE": "1",
    "MASTER_ADDR": "127.0.0.1",
    "OMP_NUM_THREADS": "1",
    "ACCELERATE_USE_DEEPSPEED": "true",
    "DS_ACCELERATOR": "cpu",
    "PYTHONWARNINGS": "ignore",
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_TRIM_THRESHOLD_": "0",
}


def measured(tree: dict[str, Any], ranks: Ranks) -> dict[str, int]:
    config = build(tree)
    plan, model = plan_batch(config.batch, 1), config.model

    def reals() -> Iterator[Pair]:
        while True:
            size = (plan.micro_batch, model.channels, model.resolution, model.resolution)
            yield torch.zeros(size), torch.zeros(plan.micro_batch, dtype=torch.int64)

    def update() -> None:
        g, d, objective = learner.g, learner.d, learner.objective
        d_step(g, d, reals(), fakes(model, plan, ranks, seed=0, stream=RandomStream.D_STEP, position=0), objective, position=0)
        g_step(g, d, fakes(model, plan, ranks, seed=0, stream=RandomStream.G_STEP, position=0), objective, position=0)

    others = tensor_bytes()
    learner = TrainState(config, plan, ranks)
    update()
    persistent = tensor_bytes() - others
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts anew
    update()
    return {"persistent": persistent, "step": resident("VmHWM") - before}


def tensor_bytes() -> int:
    """Of the memory behind all tensors that Python can reach."""
    gc.collect()
    storages = [t.untyped_storage() for t in gc.get_objects() if type(t) in (torch.Tensor, torch.nn.Parameter)]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def resident(key: str) -> int:
    found = re.search(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) * 1024


if __name__ == "__main__":
    workers = start_workers()
    print(json.dumps([measured(tree, workers) for tree in json.loads(sys.argv[1])]))
