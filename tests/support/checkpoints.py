"""Checkpoints whose content tells their images, whole and damaged."""

from pathlib import Path

import torch

from pipeline.checkpoint.format import Checkpoint, Progress, Tensors
from pipeline.checkpoint.pruning import save


def tensors(images: int) -> dict[str, Tensors]:
    """Contents that tell checkpoints apart."""
    return {name: {"w": torch.full((64, 64), float(images)), "b": torch.arange(3.0)} for name in ("generator", "ema")}


def save_at(uri: str, *images: int, keep: int = 2) -> None:
    for n in images:
        save(uri, Progress(n, n // 10), tensors(n), {"world_size": 2}, keep)


def assert_whole(found: Checkpoint | None, images: int) -> None:
    assert found is not None and found.images == images
    assert found.progress() == Progress(images, images // 10)
    assert found.state()["world_size"] == 2
    for name, part in tensors(images).items():
        assert all(torch.equal(found.tensors(name)[key], value) for key, value in part.items())


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
