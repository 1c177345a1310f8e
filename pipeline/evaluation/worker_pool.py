"""Processes that work for one command: rank 0 runs it as if alone, and the others do their part of what it asks of all.

They come from `accelerate launch`, or are started here, on this machine, where nobody else reaches them. They talk over gloo,
on the CPU: what travels are networks to begin with and features at the end. Those are pickles, as torch sends objects.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed import FileStore  # type: ignore[attr-defined]

from pipeline import child_imports, variables
from pipeline.engine.ranks import launched_as
from pipeline.errors import UserError
from pipeline.messaging import loopback
from pipeline.redaction import guard

T = TypeVar("T")
Task = Callable[..., Any]
"""Called as task(peers, *arguments) on every rank, with the result of the same call of all ranks on rank 0."""

_PATIENCE = timedelta(hours=24)
"""The others wait while rank 0 trains a judge. One that dies is noticed at once: its connection closes."""


@dataclass(frozen=True)
class WorkerPool:
    """This process among them."""

    rank: int = 0
    world_size: int = 1

    @property
    def device(self) -> torch.device:
        """Where this rank computes."""
        return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")

    def share(self, count: int, batch: int) -> tuple[int, int]:
        """This rank's stretch [start, end) of `count` positions: whole batches, whose borders are those of one process."""
        batches = -(-count // batch)
        start, end = (min(count, batch * (batches * rank // self.world_size)) for rank in (self.rank, self.rank + 1))
        return start, end

    def all(self, task: Task, *arguments: Any) -> list[Any]:
        """For rank 0: what `task` returns on each rank, in their order. Raises the first UserError that one of them met."""
        if self.world_size > 1:
            dist.broadcast_object_list([(task, arguments)])
        return self._gathered(task, arguments) or []

    def serve(self) -> None:
        """For the others: do what rank 0 asks, until it is done."""
        while True:
            order: list[Any] = [None]
            try:
                dist.broadcast_object_list(order)
            except RuntimeError:
                raise SystemExit(1) from None  # rank 0 has gone, and has said why
            if order[0] is None:
                return
            self._gathered(*order[0])

    def _gathered(self, task: Task, arguments: tuple[Any, ...]) -> list[Any] | None:
        result: Any
        try:
            result = task(self, *arguments)
        except UserError as error:
            result = error  # the others must not wait for it
        parts: list[Any] = [result]
        if self.world_size > 1:
            parts = [None] * self.world_size
            dist.gather_object(result, parts if self.rank == 0 else None)
        if self.rank:
            return None
        for part in parts:
            if isinstance(part, UserError):
                raise part
        return parts


@contextmanager
def together(processes: int) -> Iterator[WorkerPool]:
    """The ranks that this process is one of: those of its launcher, or `processes` of which it starts all but the first."""
    if (place := launched_as()).world_size > 1:
        if torch.cuda.is_available():
            torch.cuda.set_device(place.local_rank)
        file = os.environ.get(variables.PEERS)
        store = FileStore(file, place.world_size) if file else None
        dist.init_process_group("gloo", store=store, rank=place.rank, world_size=place.world_size, timeout=_PATIENCE)
        yield from _served(WorkerPool(place.rank, place.world_size))
    elif processes == 1:
        yield WorkerPool()
    else:
        with tempfile.TemporaryDirectory(prefix="biggan-peers-") as folder, loopback.only():
            yield from _with_others(processes, os.path.join(folder, "store"))


def _with_others(processes: int, store: str) -> Iterator[WorkerPool]:
    """Start the others, which meet this rank in the file `store`: only this user can write there."""
    torch.set_num_threads(max(1, torch.get_num_threads() // processes))
    common = {"WORLD_SIZE": processes, variables.PEERS: store, "OMP_NUM_THREADS": torch.get_num_threads()}
    others = [
        subprocess.Popen(
            [sys.executable, "-m", "pipeline.evaluation.worker_pool"],
            env=os.environ
            | child_imports.child_environment()
            | {name: str(value) for name, value in (common | {"RANK": rank, "LOCAL_RANK": rank}).items()},
        )
        for rank in range(1, processes)
    ]
    try:
        file = FileStore(store, processes)
        dist.init_process_group("gloo", store=file, rank=0, world_size=processes, timeout=_PATIENCE)
        yield from _served(WorkerPool(0, processes))
        for other in others:
            other.wait()
    finally:
        for other in others:
            other.kill()
            other.wait()


def _served(peers: WorkerPool) -> Iterator[WorkerPool]:
    """Dismisses the others when rank 0 has come through; if it has not, they see its connection close."""
    try:
        yield peers
        if peers.rank == 0:
            dist.broadcast_object_list([None])
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    guard()
    with together(1) as peers:
        peers.serve()
