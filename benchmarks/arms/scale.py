"""A rank of a training that takes an update when `benchmarks.scale` tells it to."""

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.arms.step import Training
from pipeline.config import load_config
from pipeline.engine.objective import Pair
from pipeline.engine.ranks import Ranks, start_workers
from pipeline.profiling.clock import COMMUNICATION, Clock, timed_collectives
from pipeline.training.memory_trial import resident_peak


class Sent(TorchDispatchMode):
    """Adds up the bytes that this rank sends inside, were all collectives rings: (W - 1) / W of a tensor, twice that to
    all-reduce it.

    It sees torch's own collectives, whoever calls them and in whatever wrapper; and it makes every operation slower.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d" and (share := _share(func, args)):
            # Of what is gathered, and what it is gathered from, the whole counts.
            tensors = (sum(t.nbytes for t in tree_leaves(part) if isinstance(t, Tensor)) for part in args)
            self.bytes += share * max(tensors)
        return func(*args, **(kwargs or {}))


def _share(func: Any, args: Sequence[Any]) -> float:
    name = func.overloadpacket.__name__
    if name in ("barrier", "monitored_barrier_"):
        return 0.0
    group = next(dist.ProcessGroup.unbox(arg) for arg in args if isinstance(arg, torch.ScriptObject))
    return (1 + name.startswith("allreduce")) * (group.size() - 1) / group.size()


@contextlib.contextmanager
def timed_waits(clock: Clock) -> Iterator[None]:
    """Count waiting for the handle of a collective as communication, too."""
    plain = dist.Work.wait

    def wait(work: dist.Work, *args: Any, **kwargs: Any) -> Any:
        with clock.phase(COMMUNICATION):
            return plain(work, *args, **kwargs)

    dist.Work.wait = wait  # type: ignore[method-assign]
    try:
        yield
    finally:
        dist.Work.wait = plain  # type: ignore[method-assign]


class Arm:
    """One rank. Each method is an order; all ranks of a training are given the same ones."""

    def __init__(self, source: str, overrides: list[str], ranks: Ranks):
        self.ranks, self._cuda = ranks, ranks.device.type == "cuda"
        before = 0 if self._cuda else resident_peak()
        config = load_config(source, overrides)
        self._training, self._clock, self._before = Training(config, ranks), Clock(ranks.device), before
        self._training.reals = self._reals()

    def _reals(self) -> list[Pair]:
        """This rank's micro-batches of a global batch that is the same for any number of ranks."""
        plan, model = self._training.plan, self._training.config.model
        numbers = torch.Generator().manual_seed(1)
        x = torch.rand(plan.global_batch, model.channels, model.resolution, model.resolution, generator=numbers) * 2 - 1
        y = torch.arange(plan.global_batch) % model.num_classes
        mine = [slice(start := plan.start(i, self.ranks.rank), start + plan.micro_batch) for i in range(plan.accumulation)]
        return [(x[part].to(self.ranks.device), y[part].to(self.ranks.device)) for part in mine]

    def count(self) -> float:
        """Take an update; return the bytes that this rank sends in it."""
        with Sent() as sent:
            self._training.update(self._clock.phase)
        return sent.bytes

    def update(self) -> dict[str, float]:
        """Take an update; return its seconds, those in which this rank waited for others, and whether it was skipped."""
        dist.barrier()
        self._clock.lap()
        self._training.skipped.zero_()
        began = time.perf_counter()
        with timed_collectives(self._clock), timed_waits(self._clock):
            self._training.update(self._clock.phase)
            lap = self._clock.lap()  # waits for the device
        seconds = time.perf_counter() - began
        return {"seconds": seconds, "communication": lap.get(COMMUNICATION, 0.0), "skipped": float(self._training.skipped)}

    def memory(self) -> int:
        """Return the most bytes that building and training took, above a process that has imported everything."""
        return torch.cuda.max_memory_allocated() if self._cuda else resident_peak() - self._before

    def save(self, file: Path) -> None:
        """Write whole parameters of both networks on rank 0, under the names `G.` and `D.`."""
        g, d = self._training.learner.g, self._training.learner.d
        with g.gathered(), d.gathered():
            engines = (("G", g), ("D", d))
            found = {f"{name}.{key}": p for name, engine in engines for key, p in engine.module.named_parameters()}
            if self.ranks.main:
                # Copies: at stages 1 and 2 parameters are views of one buffer, which safetensors refuses.
                safetensors.torch.save_file({key: t.detach().clone() for key, t in found.items()}, file)


def rank(pipes: Sequence[Connection], source: str, overrides: list[str]) -> None:
    """Build the training, then answer the orders (name, arguments) that come through this rank's pipe until it is closed."""
    # A fork finds OpenMP loaded, which no longer reads the environment.
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    ranks = start_workers()
    pipe = pipes[ranks.rank]
    arm = Arm(source, overrides, ranks)
    pipe.send(torch.get_num_threads())
    with contextlib.suppress(EOFError):
        while True:
            name, arguments = pipe.recv()
            order: Callable[..., Any] = getattr(arm, name)
            pipe.send(order(*arguments))
    os._exit(0)  # what a library has running must not hold the others up
