"""Activation checkpointing (Chen et al., arXiv 1604.06174): blocks keep their inputs only, and backward computes them again."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class Recomputing(nn.Module):
    """A network whose `forward` calls its blocks by `run`.

    A second forward gives the same as the first: power iteration happens between forwards, batch norm takes its statistics
    from the batch (over the same ranks, which recompute in the same order), and no block draws random numbers.
    """

    recompute = False
    """Whether backward computes blocks again. Self-attention is no block: its fused kernels keep little."""

    def run(self, block: Callable[..., Tensor], *inputs: Any) -> Tensor:
        if self.recompute and torch.is_grad_enabled():
            return checkpoint(block, *inputs, use_reentrant=False, preserve_rng_state=False)
        return block(*inputs)
