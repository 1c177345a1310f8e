"""Ranks as forks of one process that has imported everything: they start in a second, where a launcher takes ten.

With a GPU they are new processes, which import all of it again.
Only launchers differ: each rank joins its process group, and can be killed, as under `accelerate launch`.
"""

import multiprocessing
import os
import socket
import sys
from collections.abc import Callable, Mapping
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from pipeline.cluster.worker_command import ON_A_CPU

PRELOAD = [
    "torch",
    "deepspeed",
    "accelerate",
    "mlflow",
    "pipeline.training.loop",
    "jobs.train",
    "jobs.cli",
    "benchmarks.support.preload",
]


def start(
    target: Callable[..., Any], *args: Any, ranks: int, log: Path, environment: Mapping[str, str] | None = None
) -> list[BaseProcess]:
    """Start `ranks` processes that call `target(*args)`. They append their output to `log`; `environment` is added to ours."""
    if not (gpu := torch.cuda.is_available()):
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # read when DeepSpeed is imported
    context = multiprocessing.get_context("spawn" if gpu else "forkserver")  # CUDA may not be in a process that is forked
    context.set_forkserver_preload(PRELOAD)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    common |= {"ACCELERATE_USE_DEEPSPEED": "true", "OMP_NUM_THREADS": "1", **(environment or {})}
    processes = []
    for rank in range(ranks):
        own = dict(os.environ) | common | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        processes.append(context.Process(target=_rank, args=(target, args, own, log)))
        processes[-1].start()
    return processes


def run(target: Callable[..., Any], *args: Any, ranks: int, log: Path, **environment: str) -> None:
    """Start the ranks as `start` does and wait for them. Raises RuntimeError with the log's last lines if a rank fails."""
    processes = start(target, *args, ranks=ranks, log=log, environment=environment)
    try:
        for process in processes:
            process.join()
    finally:  # a test's time limit, say
        for process in processes:
            process.kill()
    if codes := [process.exitcode for process in processes if process.exitcode]:
        raise RuntimeError(f"exit codes {codes}:\n{log.read_text()[-4000:]}")


def one_rank(gpu: bool) -> dict[str, str]:
    """Return the environment of the only worker of a training, as `accelerate launch` sets it."""
    place = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
    place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0", "ACCELERATE_USE_DEEPSPEED": "true"}
    return place | ({} if gpu else ON_A_CPU)


def _rank(target: Callable[..., Any], args: tuple[Any, ...], environment: dict[str, str], log: Path) -> None:
    os.environ.clear()
    os.environ.update(environment)
    with open(log, "ab") as output:
        for stream in (1, 2):
            os.dup2(output.fileno(), stream)
    torch.set_num_threads(int(environment["OMP_NUM_THREADS"]))  # torch read that long ago, in the process that forks
    # Buffered lines of a killed rank would be lost.
    for text in (sys.stdout, sys.stderr):
        text.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    target(*args)
