"""What `benchmarks.peers` measures ours beside: another project's own training step, as its checkout has it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

Noise = Callable[[], tuple[Tensor, Tensor]]
"""The next latents [micro_batch, z_dim] and labels [micro_batch]."""


@dataclass(frozen=True)
class Setting:
    """One network, as all sides have it."""

    resolution: int
    ch: int
    micro_batch: int
    classes: int
    z_dim: int
    shared_dim: int
    """0: gains and biases by class, and z is not split."""
    g_attention: tuple[int, ...]
    d_attention: tuple[int, ...]


class Peer(Protocol):
    """Both networks with optimisers and average, and how they take a step."""

    name: str

    def update(self, x: Tensor, y: Tensor) -> dict[str, float]:
        """One D step on images x [micro_batch, 3, r, r] in -1..1 with labels y [micro_batch], one G step, the average.

        Returns `loss/d` and `loss/g`.
        """
        ...
