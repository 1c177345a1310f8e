"""Ranks of a test: processes over gloo, as `accelerate launch` would start them."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.support.workers import run as run_ranks


def on_ranks(world_size: int, work: Callable[..., None], *args: Any) -> str:
    """Run `work(ranks, *args)` on `world_size` ranks, and return what they said; fails the test if one of them fails."""
    with tempfile.NamedTemporaryFile() as log:
        run_ranks(_rank, work, args, ranks=world_size, log=Path(log.name))
        return Path(log.name).read_text()


def _rank(work: Callable[..., None], args: tuple[Any, ...]) -> None:
    import torch

    from pipeline.engine.ranks import start_workers

    work(start_workers(), *args)
    torch.distributed.destroy_process_group()
