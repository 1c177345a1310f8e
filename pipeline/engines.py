"""G and D as two DeepSpeed ZeRO engines, wrapped so that the silently wrong ways to use them cannot be written.

The recipe is the one that equals plain autograd (`python -m benchmarks.equality`): D learns through its engine with one
forward and one backward per micro-batch; in the G step D is frozen and called as a plain module; gradients are accumulated
by us and reduced once, in `step`. Private names of DeepSpeed are touched in this file only; its version is pinned.
"""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from model.batchnorm import set_group
from pipeline.batch import BatchPlan


@dataclass(frozen=True)
class ZeroConfig:
    """How DeepSpeed ZeRO shares the optimiser's work among the ranks."""

    stage: Literal[1, 2] = 1
    """1: optimiser state is sharded; 2: gradients too, at one reduction per micro-batch."""
    gradient_clipping: float = 0.0
    """Largest norm of each network's gradient; 0 for none."""

    def __post_init__(self) -> None:
        if self.gradient_clipping < 0:
            raise ValueError(f"gradient_clipping={self.gradient_clipping}: must not be negative")


@dataclass(frozen=True)
class Ranks:
    """This process's place among the workers."""

    rank: int
    world_size: int
    device: torch.device

    @property
    def main(self) -> bool:
        return self.rank == 0

    def sum(self, values: list[Tensor]) -> list[float]:
        """Add scalars up over all ranks, in one reduction."""
        total = torch.stack([v.detach().double() for v in values])
        dist.all_reduce(total)
        return total.tolist()


def start_workers() -> Ranks:
    """Join the process group that `accelerate launch --use_deepspeed` prepared, through Accelerate."""
    cuda = torch.cuda.is_available()
    if not cuda:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    _quiet_deepspeed()
    from accelerate import PartialState
    from accelerate.utils import DistributedType

    # Without a named backend Accelerate counts one process per rank on a CPU.
    state = PartialState(backend="nccl" if cuda else "gloo")
    expected = int(os.environ["WORLD_SIZE"])
    if state.distributed_type != DistributedType.DEEPSPEED or state.num_processes != expected:
        raise RuntimeError(
            f"Accelerate made {state.distributed_type} of {state.num_processes} processes, not DeepSpeed of {expected}"
        )
    return Ranks(state.process_index, state.num_processes, state.device)


def _quiet_deepspeed() -> None:
    import deepspeed.ops
    from deepspeed.utils import logger

    # Else every CPU run compiles a shared-memory op with ninja, minutes long, that training does not use.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    logger.setLevel("ERROR")


class Engine:
    """One network under ZeRO. `forward` and `backward` accumulate; `step` reduces, updates and clears."""

    def __init__(self, network: nn.Module, optimizer: torch.optim.Optimizer, config: ZeroConfig, micro_batch: int, bf16: bool):
        import deepspeed

        self.optimizer, self.bf16 = optimizer, bf16
        self.stage: int = config.stage
        self._engine, *_ = deepspeed.initialize(
            model=network, optimizer=optimizer, config=_deepspeed_config(config, micro_batch, bf16)
        )
        # DeepSpeed's default of 1.0 would silently change training.
        if self._engine.gradient_clipping() != config.gradient_clipping:
            raise RuntimeError(f"DeepSpeed clips at {self._engine.gradient_clipping()}, not {config.gradient_clipping}")

    @property
    def module(self) -> nn.Module:
        return self._engine.module

    @property
    def zero(self) -> Any:
        """DeepSpeed's ZeRO optimiser, for `pipeline.slices`."""
        return self._engine.optimizer

    def __call__(self, *inputs: Tensor) -> Tensor:
        """A forward whose parameters learn."""
        return self._engine(*inputs)

    def apply(self, *inputs: Tensor) -> Tensor:
        """A forward of the plain module: its own parameters do not learn, gradients still reach the inputs."""
        with self._autocast():
            return self.module(*inputs)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Inside, backward leaves this network's gradients alone."""
        self.module.requires_grad_(False)
        try:
            yield
        finally:
            self.module.requires_grad_(True)

    def backward(self, loss: Tensor) -> None:
        self._engine.backward(loss)

    def step(self) -> Tensor:
        """Update the parameters; returns the norm of the gradient [], before clipping."""
        self._engine.step()
        return torch.as_tensor(self._engine.get_global_grad_norm())

    def set_lr(self, lr: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = lr

    def _autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(next(self.module.parameters()).device.type, torch.bfloat16) if self.bf16 else nullcontext()


def _deepspeed_config(config: ZeroConfig, micro_batch: int, bf16: bool) -> dict[str, Any]:
    return {
        "train_micro_batch_size_per_gpu": micro_batch,
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,
        "gradient_clipping": config.gradient_clipping,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": {"stage": config.stage, "overlap_comm": False},
        "torch_autocast": {"enabled": bf16, "dtype": "bfloat16"},
        "steps_per_print": 2**31,
    }


def share_batch_norm(network: nn.Module, plan: BatchPlan, rank: int) -> None:
    """Form the batch-norm groups of `plan`: parts of a micro-batch, or process groups of neighbouring ranks. Collective."""
    width = plan.ranks_per_group
    if width == 1:
        set_group(network, plan.norm_group)
        return
    for first in range(0, plan.world_size, width):
        members = list(range(first, first + width))
        group = dist.new_group(members)
        if rank in members:
            set_group(network, plan.micro_batch, group)
