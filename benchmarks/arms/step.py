"""Measure a step for `benchmarks.step` and `benchmarks.gpu`, in the only worker of its group.

stdin says what to measure, as JSON. stdout gets the figures, as JSON. The exit code is
`pipeline.training.micro_batch.DOES_NOT_FIT` if there was not enough memory.
"""

import contextlib
import gzip
import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.support.as_written import convolve_as_written
from benchmarks.support.timeline import kernel_times, longest_gaps, work
from model.latents import RandomStream
from pipeline.config import RunConfig, load_config
from pipeline.engine.batch import plan_batch
from pipeline.engine.ranks import Ranks, start_workers
from pipeline.engine.steps import d_step, fakes, g_step
from pipeline.errors import ConfigError
from pipeline.profiling.clock import Clock
from pipeline.profiling.mfu import device_name, matrix_rate
from pipeline.training.memory_trial import out_of_memory, resident_peak
from pipeline.training.micro_batch import DOES_NOT_FIT
from pipeline.training.train_state import TrainState

WARM = 3
"""Updates before the timed ones: moments are made, kernels chosen and compiled."""
SECONDS, LEAST, MOST = 5.0, 3, 100
"""How long the timed updates take where their number is not given, and the fewest and most that they are."""
DECAY = 0.999
TRACED = 2


def config_of(source: str, overrides: list[str], micro_batch: int) -> RunConfig:
    """Return the configuration of a row: a batch is a micro-batch, nothing is sharded; `overrides` come last."""
    sizes = [f"batch.{key}={micro_batch}" for key in ("global_batch", "norm_group", "micro_batch")]
    config = load_config(source, [*sizes, "zero.stage=0", *overrides])
    if config.precision == "auto":
        raise ConfigError("precision=auto: a benchmark says which: type precision=bf16 or precision=fp32")
    return config


class Training:
    """A learner and its updates, on images that are on the device already."""

    def __init__(self, config: RunConfig, ranks: Ranks):
        self.config, self.ranks = config, ranks
        self.plan = plan_batch(config.batch, ranks.world_size)
        self.learner = TrainState(config, self.plan, ranks)
        self.updates = 0
        self.skipped = torch.zeros(())
        model, size = config.model, self.plan.micro_batch
        x = torch.rand(size, model.channels, model.resolution, model.resolution, device=ranks.device) * 2 - 1
        self.reals = [(x, torch.arange(size, device=ranks.device) % model.num_classes)] * self.plan.accumulation

    @property
    def images(self) -> int:
        """Real images that D sees in an update."""
        return self.plan.global_batch * self.config.batch.d_steps

    def update(self, phase: Callable[[str], contextlib.AbstractContextManager[None]]) -> None:
        """Take `batch.d_steps` D steps, a G step and the average, as `pipeline.training.loop` does them."""
        learner, config, total = self.learner, self.config, self.plan.global_batch
        for step in range(config.batch.d_steps):
            with phase("d_step"):
                position = self.updates * self.images + step * total
                draw = fakes(
                    config.model, self.plan, self.ranks, seed=config.seed, stream=RandomStream.D_STEP, position=position
                )
                self._see(d_step(learner.g, learner.d, self.reals, draw, learner.objective, position=position))
        with phase("g_step"):
            position = self.updates * total
            draw = fakes(config.model, self.plan, self.ranks, seed=config.seed, stream=RandomStream.G_STEP, position=position)
            self._see(g_step(learner.g, learner.d, draw, learner.objective, position=position))
        with phase("ema"):
            learner.ema.update(learner.g.parts(), DECAY)
        self.updates += 1

    def _see(self, values: dict[str, Tensor]) -> None:
        self.skipped = self.skipped + values.get("skipped/d", values.get("skipped/g", 0))


def measure(asked: dict[str, Any]) -> dict[str, Any]:
    """Time the updates that are `asked` for, and their phases; with `trace`, profile two more into that file.

    With `search`, cuDNN looks for its quickest convolutions in the first updates; with `plain`, they are as they are written.
    """
    ranks = start_workers()
    torch.backends.cudnn.benchmark = asked.get("search", False)
    if asked.get("plain"):
        convolve_as_written()
    cuda = ranks.device.type == "cuda"
    config = config_of(asked["source"], asked["overrides"], asked["micro_batch"])
    rate = matrix_rate(ranks.device, config.precision)
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    training, clock = Training(config, ranks), Clock(ranks.device)
    for _ in range(WARM):
        training.update(clock.phase)
    warm = sum(clock.lap().values())
    if not (updates := asked["updates"]):
        training.update(clock.phase)
        updates = min(MOST, max(LEAST, round(SECONDS / sum(clock.lap().values()))))
    training.skipped.zero_()
    began = time.perf_counter()
    for _ in range(updates):
        training.update(clock.phase)
    lap = clock.lap()  # waits for the device
    found = {"seconds": time.perf_counter() - began, "updates": updates, "images": updates * training.images}
    found |= {"phases": {name: lap[name] / updates for name in ("d_step", "g_step", "ema")}, "warm": warm, "rate": rate}
    found |= {"skipped": int(training.skipped), "memory": torch.cuda.max_memory_allocated() if cuda else resident_peak()}
    found |= {"device": device_name(ranks.device), "type": ranks.device.type, "threads": torch.get_num_threads()}
    if asked.get("trace"):
        try:
            found |= _traced(training, asked["trace"])
        except Exception as error:  # the figures are worth having all the same
            traceback.print_exc()
            found["not traced"] = f"{type(error).__name__}: {error}"
    return found


def _traced(training: Training, file: str) -> dict[str, Any]:
    """Kernels (on a CPU: operators) by time and the longest gaps between them, of `TRACED` updates, whose trace `file` gets."""
    from torch.profiler import ProfilerActivity, profile, record_function, schedule

    cuda = training.ranks.device.type == "cuda"
    with profile(
        activities=[ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * cuda,
        schedule=schedule(wait=0, warmup=1, active=TRACED, repeat=1),
        on_trace_ready=lambda done: done.export_chrome_trace(file),
    ) as profiler:
        for _ in range(1 + TRACED):
            training.update(record_function)
            profiler.step()
    with gzip.open(file) as trace:
        events = work(json.load(trace)["traceEvents"], cuda)
    return {"traced": TRACED, "kernels": kernel_times(events), **longest_gaps(events)}


def rates() -> dict[str, Any]:
    """Measure the FLOP/s of a matrix product in each precision of this device."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    found: dict[str, Any] = {name: matrix_rate(device, name) for name in ("fp32", "bf16")}
    found |= {"tf32": None, "device": device_name(device), "type": device.type}
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = True
        found["tf32"] = matrix_rate(device, "fp32")
        found["memory"] = torch.cuda.get_device_properties(device).total_memory
    return found


def main() -> None:
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries print
    asked = json.loads(sys.stdin.read())
    try:
        found = measure(asked) if asked["what"] == "step" else rates()
    except Exception as error:
        if not out_of_memory(error):
            raise
        print(str(error).partition("\n")[0], file=sys.stderr, flush=True)
        os._exit(DOES_NOT_FIT)
    print(json.dumps(found), file=answer, flush=True)
    sys.stderr.flush()
    os._exit(0)  # what a library has running must not hold the next row up


if __name__ == "__main__":
    main()
