"""An engine without DeepSpeed."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn

from pipeline.engine.zero import Update


class Plain:
    """A network as `pipeline.engine.steps` sees an engine, without DeepSpeed."""

    def __init__(self, module: nn.Module):
        self.module = module

    def __call__(self, *inputs: Tensor) -> Tensor:
        return self.module(*inputs)

    apply = __call__

    @contextmanager
    def frozen(self) -> Iterator[None]:
        self.module.requires_grad_(False)
        yield
        self.module.requires_grad_(True)

    def backward(self, loss: Tensor, added: object = None) -> None:
        loss.backward()

    def gathered(self) -> AbstractContextManager[None]:
        return nullcontext()

    def step(self) -> Update:
        return Update(torch.zeros(()), skipped=False)
