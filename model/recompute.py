"""How a network's blocks are run: as they stand, recomputed in backward, or compiled.

Activation checkpointing (Chen et al., arXiv 1604.06174) keeps the inputs of blocks only; backward computes them again.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .batchnorm import batch_norms


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

    def compile_blocks(self) -> None:
        """Run blocks and self-attention through torch.compile from now on: it fuses what stands between the convolutions.

        Not the whole network: blocks compile one by one, and hooks and recomputation around them stay as they are.
        """
        # A block has a graph for each batch it sees (D's of real and fake, of fakes alone) with and without gradients, and
        # blocks of one class count together. Past the limit torch would go on without compiling, and not say so.
        torch._dynamo.config.recompile_limit = 64
        torch._dynamo.config.fail_on_recompile_limit_hit = True
        for norm in batch_norms(self):
            if norm.process_group is not None:  # a collective is no part of a graph
                norm.forward = torch.compiler.disable(norm.forward)  # type: ignore[method-assign]
        for name in ("blocks", "attention"):
            layers = getattr(self, name, None)
            for layer in layers.values() if isinstance(layers, nn.ModuleDict) else layers or ():
                layer.compile(dynamic=False)
