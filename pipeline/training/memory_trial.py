"""How much memory a training step takes: the real networks, engines and optimisers, on random images.

As a program it is one worker of a trial of `pipeline.training.micro_batch`: it exits with `DOES_NOT_FIT` if there was not
enough.
"""

import json
import os
import resource
import sys
import threading
from dataclasses import replace
from pathlib import Path

import torch
import yaml
from torch.distributed import HashStore, PrefixStore, Store, TCPStore  # type: ignore[attr-defined]

from model.latents import RandomStream
from pipeline.config import RunConfig, build
from pipeline.engine.batch import plan_batch
from pipeline.engine.objective import Objective
from pipeline.engine.ranks import Ranks, launched_as, meeting_place, start_workers
from pipeline.engine.steps import d_step, fakes, g_step
from pipeline.redaction import guard
from pipeline.training.micro_batch import DOES_NOT_FIT
from pipeline.training.train_state import TrainState

_SHARE = 0.9
"""Of the free memory; the rest is for images that are read ahead, sample grids, and what other programs will want."""


def step_peak(config: RunConfig, micro_batch: int, ranks: Ranks, limited: bool = False) -> int:
    """Bytes that building both engines and taking D and G steps in micro-batches of `micro_batch` adds at its peak. Collective.

    On a GPU they are those of torch's allocator; on a CPU those of the process, which should be a fresh one: what it once had
    and gave back is not seen. With `limited`, more than `batch.memory_gb`, or most of what is free, raises as if it were all.
    """
    cuda = ranks.device.type == "cuda"
    before = torch.cuda.memory_allocated() if cuda else _status("VmRSS")
    plan = plan_batch(replace(config.batch, micro_batch=micro_batch, memory_gb=None), ranks.world_size)
    # From the second micro-step on, the gradients of those before are there too; more are no different.
    accumulation = min(2, plan.accumulation)
    plan = replace(plan, global_batch=accumulation * ranks.world_size * micro_batch, accumulation=accumulation)
    learner = TrainState(config, plan, ranks)
    g, d = learner.g, learner.d
    if limited:
        torch.distributed.barrier()
        _limit(config.batch.memory_gb, ranks)
    model = config.model
    x = torch.rand(micro_batch, model.channels, model.resolution, model.resolution, device=ranks.device) * 2 - 1
    y = torch.arange(micro_batch, device=ranks.device) % model.num_classes
    for position in (0, plan.global_batch):  # the optimisers' state is made in the first step
        objective = Objective(config.objective, plan, ranks, config.seed)  # a new one takes its lazy penalties each time
        draw = fakes(model, plan, ranks, seed=config.seed, stream=RandomStream.D_STEP, position=position)
        d_step(g, d, [(x, y)] * accumulation, draw, objective, position=position)
        g_step(g, d, draw, objective, position=position)
        learner.ema.update(g.parts(), 0.5)
    return (torch.cuda.max_memory_allocated() if cuda else resident_peak()) - before


def _limit(gb: float | None, ranks: Ranks) -> None:
    """Make allocations beyond the limit fail from now on."""
    if ranks.device.type == "cuda":
        free, total = torch.cuda.mem_get_info()
        allowed = gb * 1e9 if gb else torch.cuda.memory_reserved() + _SHARE * free
        torch.cuda.set_per_process_memory_fraction(min(1.0, allowed / total))
        return
    more = gb * 1e9 - _status("VmRSS") if gb else _SHARE * free_memory() / ranks.local_size
    # Else the kernel would pick a process and kill it.
    resource.setrlimit(resource.RLIMIT_DATA, (_status("VmData") + max(0, int(more)), resource.RLIM_INFINITY))


def free_memory() -> int:
    """Bytes that programs on this machine can still take, within the limits of this process's control groups."""
    free = [_field(Path("/proc/meminfo"), "MemAvailable:") * 1024]
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, name = line.split(":", 2)
        if controllers == "":
            root, most, used, cache = "/sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"
        elif controllers == "memory":
            root, most, used = "/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
            cache = "total_inactive_file"
        else:
            continue
        folder = Path(root + name)
        for group in (folder, *folder.parents):
            if (group / most).exists() and (limit := (group / most).read_text().strip()) != "max":
                reclaimable = _field(group / "memory.stat", cache)
                free.append(int(limit) - int((group / used).read_text()) + reclaimable)
    return max(0, min(free))


def resident_peak() -> int:
    """The most bytes that this process had. `getrusage` would count what its parent had when it forked."""
    return _status("VmHWM")


def _status(field: str) -> int:
    """A size in bytes that Linux keeps about this process: VmRSS (resident), VmHWM (its peak), VmData."""
    return _field(Path("/proc/self/status"), field + ":") * 1024


def _field(file: Path, name: str) -> int:
    return next(int(line.split()[1]) for line in file.read_text().splitlines() if line.split()[0] == name)


def out_of_memory(error: Exception) -> bool:
    """Whether an allocation failed: on a CPU there is no class for it."""
    words = ("allocate memory", "bad_alloc", "out of memory")
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(word in str(error) for word in words)


def _meet(name: str) -> None:
    """Join the other ranks' trials of this name in the store where the ranks have met: nothing else has to listen."""
    place = launched_as()
    store: Store = HashStore()
    if place.world_size > 1:
        store = PrefixStore(name, TCPStore(*meeting_place(), is_master=False))
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    torch.distributed.init_process_group(backend, store=store, rank=place.rank, world_size=place.world_size)


def main() -> None:
    """Read (config as YAML, micro-batch, name) as a line of JSON, take the steps, print the peak in bytes."""
    text, micro_batch, name = json.loads(sys.stdin.readline())
    # Whoever asked keeps stdin open for as long as it lives.
    threading.Thread(target=lambda: (sys.stdin.read(), os._exit(1)), daemon=True).start()
    answer = os.dup(1)
    os.dup2(2, 1)  # libraries print
    _meet(name)
    ranks = start_workers()
    try:
        peak = step_peak(build(yaml.safe_load(text)), micro_batch, ranks, limited=True)
    except Exception as error:
        if not out_of_memory(error):
            raise
        os._exit(DOES_NOT_FIT)  # the other ranks are in a collective
    os.write(answer, str(peak).encode())
    os._exit(0)  # threads that libraries have running can abort an interpreter on its way out: exit code -6, seen once


if __name__ == "__main__":
    guard()
    main()
