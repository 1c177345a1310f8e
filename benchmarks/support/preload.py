"""What a training imports only when it builds its engines: a process that forks ranks imports this first."""

import deepspeed.ops.op_builder.all_ops
import deepspeed.runtime.zero.muon.original_muon  # noqa: F401 - of DeepSpeed's engine
import torch

# torch imports its compiler with the first optimiser.
torch.optim.Adam([torch.zeros(1)])
