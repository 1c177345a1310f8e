"""The memory of a training step, counted on tensors that have a size but no memory: any batch, on any machine, in seconds."""

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from model.networks import build_discriminator, build_generator
from pipeline.config import RunConfig
from pipeline.engine.batch import BatchPlan
from pipeline.engine.objective import Objective
from pipeline.engine.ranks import Ranks
from pipeline.engine.zero import share_batch_norm


class LiveBytes(TorchDispatchMode):
    """Inside, counts the bytes of the tensors that operators make, for as long as anything keeps them: `now` and `peak`."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._known = WeakIdKeyDictionary(ref_type=weakref.ref)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {id(t.untyped_storage()) for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and id(storage := tensor.untyped_storage()) not in given:
                self._count(storage)
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage not in self._known:
            self._known[storage] = True
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._free, storage.nbytes())

    def _free(self, size: int) -> None:
        self.now -= size


@dataclass(frozen=True)
class StepMemory:
    """Bytes on one rank that a micro-step adds to parameters and gradients: what backward needs, and what passes by."""

    d_step: int
    g_step: int


def step_memory(config: RunConfig, plan: BatchPlan) -> StepMemory:
    """The most that is alive at once in one micro-step of D and one of G, as the CPU's operators keep it.

    Operators' own workspace is not in it: a convolution may take some, depending on the device and the library.
    """
    n, model = plan.micro_batch, config.model
    cpu = torch.device("cpu")
    with _ranks_that_do_nothing(plan.world_size), FakeTensorMode():
        g, d = build_generator(model), build_discriminator(model)
        for network in (g, d):
            share_batch_norm(network, plan, 0)
            network.recompute = config.activation_checkpointing == "blocks"
            for parameter in network.parameters():
                parameter.grad = torch.empty_like(parameter)
        objective = Objective(config.objective, plan, Ranks(rank=0, world_size=plan.world_size, device=cpu), 0)
        z, y = torch.empty(n, model.latent_dim), torch.zeros(n, dtype=torch.int64)

        def autocast(network: nn.Module) -> Callable[..., Tensor]:
            def forward(*inputs: Tensor) -> Tensor:
                with torch.autocast("cpu", torch.bfloat16, enabled=config.bf16):
                    return network(*inputs)

            return forward

        with LiveBytes() as d_step:
            x = torch.empty(n, model.channels, model.resolution, model.resolution)
            with torch.no_grad():
                fake = autocast(g)(z, y)
            objective.d_loss(autocast(d), (x, y), (fake, y), 0, 0)[0].backward()
        del x, fake
        d.requires_grad_(False)
        with LiveBytes() as g_step:
            objective.g_loss(autocast(d), (autocast(g)(z, y), y), 0, 0)[0].backward()
    return StepMemory(d_step.peak, g_step.peak)


@contextmanager
def _ranks_that_do_nothing(world_size: int) -> Iterator[None]:
    """A process group of `world_size` ranks in this process, for batch norm across ranks to be built as it will be."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=world_size)
    try:
        yield
    finally:
        dist.destroy_process_group()
