"""G and D as two DeepSpeed ZeRO engines, wrapped so that the silently wrong ways to use them cannot be written.

The recipe is the one that equals plain autograd (`python -m benchmarks.equality`): D learns through its engine with one
forward and one backward per micro-batch; in the G step D is frozen and called as a plain module; gradients are accumulated
by us. At stages 0 and 1 they are reduced once, in `step`; at 2 and 3 each rank keeps a part of them only, so every backward
reduces, while it goes on. Private names of DeepSpeed are touched in this package only; its version is pinned.
"""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Annotated, Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from model.batchnorm import set_group
from pipeline.bounds import Bounds, check_bounds
from pipeline.engine.batch import BatchPlan
from pipeline.errors import ConfigError

BUCKET = 25_000_000
"""Gradients that travel together, 100 MB: DeepSpeed's own 2 GB would hold all of a GAN's, and then nothing overlaps."""
PERSISTENT = 4096
"""Parameters of no more values (gains, biases) stay whole at stage 3: a message for each would cost more than they do."""


@dataclass(frozen=True)
class ZeroConfig:
    """How DeepSpeed ZeRO shares the optimiser's work among the ranks. The mathematics is the same in every case."""

    stage: Literal[0, 1, 2, 3] = 1
    """0: nothing is shared; 1: the optimiser's state; 2: gradients too, reduced at every micro-batch; 3: parameters too,
    gathered layer by layer in every forward and backward."""
    offload: Literal["none", "optimizer"] = "none"
    """optimizer: its state and its step are on the CPU."""
    gradient_clipping: Annotated[float, Bounds(ge=0)] = 0.0
    """Largest norm of each network's gradient; 0 for none."""

    def __post_init__(self) -> None:
        check_bounds(self)
        if self.offload == "optimizer" and self.stage == 0:
            raise ValueError("offload=optimizer: stage 0 shares no optimiser state: set zero.stage=1, or zero.offload=none")


@dataclass(frozen=True)
class Update:
    """What `Engine.step` did, the same on all ranks."""

    norm: Tensor
    """Of the gradient [], before clipping; not finite if it was skipped."""
    skipped: bool
    """A gradient was NaN or infinite, on whichever rank: parameters and optimiser are as if there had been no step."""


class Engine:
    """One network under ZeRO. `forward` and `backward` accumulate; `step` reduces, updates and clears."""

    def __init__(self, network: nn.Module, optimizer: torch.optim.Optimizer, config: ZeroConfig, micro_batch: int, bf16: bool):
        import deepspeed

        device = next(network.parameters()).device
        # Emulated, it would be slower than fp32.
        if bf16 and device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
            name = torch.cuda.get_device_name(device)
            raise ConfigError(f"precision=bf16: {name} does not compute in bf16: set precision=fp32")
        self.optimizer, self.bf16, self.stage = optimizer, bf16, int(config.stage)
        self._engine, *_ = deepspeed.initialize(
            model=network, optimizer=optimizer, config=_deepspeed_config(config, micro_batch, bf16)
        )
        # DeepSpeed's default of 1.0 would silently change training.
        if self._engine.gradient_clipping() != config.gradient_clipping:
            raise RuntimeError(f"DeepSpeed clips at {self._engine.gradient_clipping()}, not {config.gradient_clipping}")
        # At stage 0 DeepSpeed steps right after its reduction; we look at the gradients in between.
        self._engine.enable_backward_allreduce = self.stage > 0

    @property
    def module(self) -> nn.Module:
        return self._engine.module

    @property
    def zero(self) -> Any:
        """DeepSpeed's ZeRO optimiser, for `pipeline.engine.slices`."""
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

    def backward(self, loss: Tensor, added: Mapping[nn.Parameter, Tensor] = MappingProxyType({})) -> None:
        """Accumulate the gradient of `loss`, and on top of it gradients of whole parameters that were found elsewhere."""
        hooks = [parameter.register_hook(partial(torch.add, gradient)) for parameter, gradient in added.items()]
        self._engine.backward(loss)
        for hook in hooks:
            hook.remove()

    def step(self) -> Update:
        """Update the parameters and clear the gradients; if one of them is not finite, only clear them."""
        if self.stage == 0:
            if dist.get_world_size() > 1:  # else it would flatten all gradients for nobody
                self._engine.buffered_allreduce_fallback()
            norm = nn.utils.get_total_norm([p.grad for p in self.module.parameters() if p.grad is not None])
            if not bool(norm.isfinite()):
                self._engine.zero_grad()
                return Update(norm, skipped=True)
            self._engine.step()
            return Update(norm, skipped=False)
        # ZeRO's optimisers check the norm themselves, which is that of all ranks.
        self._engine.step()
        return Update(torch.as_tensor(self._engine.get_global_grad_norm()), not self._engine.was_step_applied())

    def set_lr(self, lr: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = lr

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """Inside, parameters are whole, to be read; at stage 3 they are so only in a layer's own forward. Collective."""
        import deepspeed

        with deepspeed.zero.GatheredParameters(list(self.module.parameters())):
            yield

    def parts(self) -> dict[str, Tensor]:
        """What this rank keeps of each parameter: the parameter, or at stage 3 its share [ceil(size / ranks)], padded."""
        return {name: p.ds_tensor if self.stage == 3 else p for name, p in self._parameters()}

    def part(self, whole: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What this rank keeps, as in `parts`, of tensors with the names and shapes of the parameters."""
        if self.stage < 3:
            return dict(whole)
        rank, ranks, shares = dist.get_rank(), dist.get_world_size(), {}
        for name, parameter in self._parameters():
            size = parameter.ds_tensor.ds_numel
            padded = F.pad(whole[name].flatten(), (0, size * ranks - parameter.ds_numel))
            shares[name] = padded[rank * size : (rank + 1) * size]
        return shares

    def whole(self, parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The inverse of `part`, on every rank. Collective."""
        if self.stage < 3:
            return dict(parts)
        gathered = {}
        for name, parameter in self._parameters():
            shares = [torch.empty_like(parts[name]) for _ in range(dist.get_world_size())]
            dist.all_gather(shares, parts[name])
            gathered[name] = torch.cat(shares)[: parameter.ds_numel].view(parameter.ds_shape)
        return gathered

    def close(self) -> None:
        """Let go of the network, whose memory DeepSpeed's hooks would keep for good (at stage 3 this rank's share stays)."""
        self._engine.destroy()

    def _parameters(self) -> Iterator[tuple[str, Any]]:
        """By name; at stage 3 they carry DeepSpeed's attributes, `ds_...`."""
        return self.module.named_parameters()

    def _autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(next(self.module.parameters()).device.type, torch.bfloat16) if self.bf16 else nullcontext()


def _deepspeed_config(config: ZeroConfig, micro_batch: int, bf16: bool) -> dict[str, Any]:
    zero: dict[str, Any] = {"stage": config.stage, "reduce_bucket_size": BUCKET, "overlap_comm": config.stage > 1}
    zero["stage3_param_persistence_threshold"] = PERSISTENT
    if config.offload == "optimizer":
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    return {
        "train_micro_batch_size_per_gpu": micro_batch,
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,
        "gradient_clipping": config.gradient_clipping,
        "zero_allow_untested_optimizer": True,
        # DeepSpeed's own Adam for the CPU would be compiled at the start; torch's fused one is as good.
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": zero,
        # Without a list of its own DeepSpeed sends the gradients of plain convolutions in bf16.
        "torch_autocast": {"enabled": bf16, "dtype": "bfloat16", "lower_precision_safe_modules": []},
        "steps_per_print": 2**31,
        # It waits for the device in every forward.
        "timers": {"throughput": {"enabled": False}},
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
