"""Small things that all ranks have to know alike: JSON in tensors, checked against a type, where torch's own would unpickle."""

import json
from dataclasses import asdict, is_dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from pipeline.engine.ranks import Ranks
from pipeline.errors import NodeError
from pipeline.untrusted import parse

T = TypeVar("T")

_MOST = 64 << 20
"""Bytes of what one rank may say."""


def from_main(kind: type[T], value: T | None, ranks: Ranks) -> T:
    """Return on every rank what rank 0 gives as `value`, of type `kind`, which JSON can hold. Collective.

    Raises NodeError for anything else.
    """
    device = _device()
    data = _bytes(value).to(device) if ranks.main else torch.empty(0, dtype=torch.uint8, device=device)
    size = torch.tensor([len(data)], device=device)
    dist.broadcast(size, 0)
    if not ranks.main:
        data = torch.empty(_checked(size), dtype=torch.uint8, device=device)
    dist.broadcast(data, 0)
    return _parsed(kind, data)


def from_all(kind: type[T], value: T, ranks: Ranks) -> list[T]:
    """Return what each rank gives, in their order. Collective. Raises NodeError as `from_main`."""
    device, data = _device(), _bytes(value)
    sizes = [torch.empty(1, dtype=torch.int64, device=device) for _ in range(ranks.world_size)]
    dist.all_gather(sizes, torch.tensor([len(data)], device=device))
    padded = torch.zeros(max(map(_checked, sizes)), dtype=torch.uint8, device=device)
    padded[: len(data)] = data
    parts = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(parts, padded)
    return [_parsed(kind, part[: int(size)]) for part, size in zip(parts, sizes, strict=True)]


def _device() -> torch.device:
    """Where the tensors of collectives must be."""
    return torch.device("cuda", torch.cuda.current_device()) if "nccl" in dist.get_backend() else torch.device("cpu")


def _bytes(value: Any) -> Tensor:
    return torch.frombuffer(bytearray(json.dumps(value, default=_plain).encode()), dtype=torch.uint8)


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    raise TypeError(f"{type(value).__name__} is no JSON")


def _checked(size: Tensor) -> int:
    if not 0 < int(size) <= _MOST:
        raise NodeError(f"another rank says that it has {int(size):,} bytes to tell: is something else in this network?")
    return int(size)


def _parsed(kind: type[T], data: Tensor) -> T:
    return parse(kind, bytes(data.cpu().numpy()), "what another rank said", error=NodeError)
