"""How fast nodes exchange gradients: all-reduces between two of them, and between all.

One process of each node takes part, over NCCL with the node's first GPU where all nodes have GPUs, else over gloo. That is the
path of the first GPU's network adapter, not the sum of a node with several. Rates are bus bandwidths as nccl-tests has them:
2 (n - 1) / n times the bytes of the tensor, over the time; they do not depend on the number of nodes n.
"""

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed import PrefixStore, Store  # type: ignore[attr-defined]

from pipeline.doctor.node import NodeFaultInjection

PAIR_SECONDS = 20.0
"""After which two nodes that cannot talk give up."""

_FIRST_BYTES = 1 << 20
_MOST_BYTES = 64 << 20
_AIM_SECONDS = 0.1
_TIMES = 4


def tournament(nodes: Sequence[int], most: int = 15) -> list[list[tuple[int, int]]]:
    """Rounds of pairs in which each node has at most one partner: every pair once, or the first `most` rounds of that."""
    ring: list[int | None] = [*nodes, None] if len(nodes) % 2 else [*nodes]
    rounds = []
    for _ in range(min(most, len(ring) - 1)):
        half = len(ring) // 2
        matches = zip(ring[:half], reversed(ring[half:]), strict=True)
        rounds.append([(min(a, b), max(a, b)) for a, b in matches if a is not None and b is not None])
        ring = [ring[0], ring[-1], *ring[1:-1]]
    return rounds


def all_reduce_rate(store: Store, name: str, ranks: Sequence[int], rank: int, cuda: bool, fault: NodeFaultInjection) -> float:
    """Bytes per second between `ranks`, of which this is `rank`; all of them call it, with a `name` that is new.

    Raises RuntimeError if they cannot talk.
    """
    with _group(store, name, ranks.index(rank), len(ranks), cuda):
        device = torch.device("cuda", 0) if cuda else torch.device("cpu")
        _time(1 << 16, device, fault)  # connects
        size = _FIRST_BYTES
        while (spent := _time(size, device, fault)) < _AIM_SECONDS and size < _MOST_BYTES:
            size *= 4
        best = min([spent, *(_time(size, device, fault) for _ in range(_TIMES if spent < 1 else 0))])
        return 2 * (len(ranks) - 1) / len(ranks) * size / best


def _time(size: int, device: torch.device, fault: NodeFaultInjection) -> float:
    """Seconds of an all-reduce of `size` bytes, the same on every rank: those of the slowest."""
    tensor = torch.ones(size // 4, device=device)
    dist.barrier()
    began = time.perf_counter()
    time.sleep(fault.value("link", 0.0) * size / 1e6)
    dist.all_reduce(tensor)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    spent = torch.tensor(time.perf_counter() - began, dtype=torch.float64, device=device)
    dist.all_reduce(spent, dist.ReduceOp.MAX)
    return float(spent)


@contextmanager
def _group(store: Store, name: str, rank: int, size: int, cuda: bool) -> Iterator[None]:
    if cuda:
        torch.cuda.set_device(0)
        os.environ["TORCH_NCCL_BLOCKING_WAIT"] = "1"  # a collective that is late raises, instead of ending the process
    limit = timedelta(seconds=PAIR_SECONDS)
    dist.init_process_group(
        "nccl" if cuda else "gloo", store=PrefixStore(name, store), rank=rank, world_size=size, timeout=limit
    )
    try:
        yield
    finally:
        dist.destroy_process_group()
