"""Define what the comparison of training steps needs of another project: the same network and batch, its own step."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

Noise = Callable[[], tuple[Tensor, Tensor]]
"""The next latents [micro_batch, z_dim] and labels [micro_batch]."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One network and one batch, in the terms of our `model` and `batch` keys."""

    resolution: int
    """Height and width of the images in pixels."""
    ch: int
    """Width multiplier of both networks. What it multiplies is our table (`model.sizes.SIZES`)."""
    micro_batch: int
    """Samples of one forward; there is no accumulation, so it is also the batch of a step."""
    classes: int
    z_dim: int
    shared_dim: int
    """0: gains and biases by class, and z is not split."""
    g_attention: tuple[int, ...]
    """Resolutions in G that self-attention follows; none: ()."""
    d_attention: tuple[int, ...]
    """The same in D."""
    d_steps: int = 1
    """D steps before each G step."""


class Peer(Protocol):
    """Another project's networks and optimisers, ready for their next step."""

    name: str

    def update(self, x: Tensor, y: Tensor) -> dict[str, float] | None:
        """Take `d_steps` D steps, a G step and its EMA with the project's own code; return when the device is done.

        Takes real images [micro_batch * d_steps, 3, r, r] in -1..1 and their labels int64. Returns the last losses by name
        (`loss/d`, `loss/g`) where the project has them.
        """


@contextlib.contextmanager
def searching() -> Iterator[None]:
    """Let cuDNN search for its quickest algorithms, as the originals have it do (StudioGAN where there is no seed)."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before
