"""Ranks of a test: processes over gloo, as `accelerate launch` would start them."""

import multiprocessing
import os
import socket
from collections.abc import Callable
from typing import Any


def on_ranks(world_size: int, work: Callable[..., None], *args: Any, timeout: float = 600) -> None:
    """Run `work(ranks, *args)` on `world_size` ranks; fails the test if one of them fails."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_rank, args=(rank, world_size, port, work, args)) for rank in range(world_size)]
    for process in processes:
        process.start()
    try:
        for process in processes:
            process.join(timeout)
        assert [process.exitcode for process in processes] == [0] * world_size
    finally:
        for process in processes:
            process.kill()


def _rank(rank: int, world_size: int, port: int, work: Callable[..., None], args: tuple[Any, ...]) -> None:
    common = {"WORLD_SIZE": world_size, "LOCAL_WORLD_SIZE": world_size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    common |= {"RANK": rank, "LOCAL_RANK": rank, "OMP_NUM_THREADS": 1, "ACCELERATE_USE_DEEPSPEED": "true"}
    os.environ |= {key: str(value) for key, value in common.items()}
    import torch

    from pipeline.engines import start_workers

    torch.set_num_threads(1)
    work(start_workers(), *args)
    torch.distributed.destroy_process_group()
