"""The ranks of a job: which of them this process is, on which node, and what all of them agree on in one reduction.

No other module reads the variables by which a launcher tells a worker its place (RANK, LOCAL_RANK, WORLD_SIZE ...).
"""

import os
from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """This process's place among the workers."""

    rank: int
    world_size: int
    device: torch.device
    local_rank: int = 0
    """Rank among the workers of this node."""
    node: int = 0
    """Rank of this node among the `nodes`."""
    nodes: int = 1

    @property
    def main(self) -> bool:
        return self.rank == 0

    @property
    def local_main(self) -> bool:
        """Whether this is the process that acts for its node."""
        return self.local_rank == 0

    @property
    def local_size(self) -> int:
        """Workers of each node."""
        return self.world_size // self.nodes

    def put(self, tensor: Tensor) -> Tensor:
        """Copy a new tensor of the CPU to the device; the CPU does not wait for that."""
        return (tensor.pin_memory() if self.device.type == "cuda" else tensor).to(self.device, non_blocking=True)

    def sum(self, values: list[Tensor]) -> list[float]:
        """Add scalars up over all ranks, in one reduction."""
        total = torch.stack([v.detach().double() for v in values])
        dist.all_reduce(total)
        return total.tolist()

    def greatest(self, value: int) -> int:
        """Return the largest value of all ranks."""
        if self.world_size == 1:  # not even a wait for the device
            return value
        most = torch.tensor(value, device=self.device)
        dist.all_reduce(most, dist.ReduceOp.MAX)
        return int(most)


def launched_as() -> Ranks:
    """Return the place that the launcher gave this process, which need not have joined the others; alone without a launcher.

    Its device is the CPU: `start_workers` picks another.
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    return Ranks(
        rank=int(os.environ.get("RANK", "0")),
        world_size=world_size,
        device=torch.device("cpu"),
        local_rank=int(os.environ.get("LOCAL_RANK", "0")),
        node=int(os.environ.get("GROUP_RANK", "0")),  # torch's name for the rank of a node
        nodes=world_size // int(os.environ.get("LOCAL_WORLD_SIZE", world_size)),
    )


def meeting_place() -> tuple[str, int]:
    """Return address and port of the store where the launcher has the ranks meet."""
    return os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])


def start_workers() -> Ranks:
    """Join the process group that `accelerate launch --use_deepspeed` prepared, through Accelerate."""
    cuda = torch.cuda.is_available()
    if not cuda:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    quiet_deepspeed(cuda)
    from accelerate import PartialState
    from accelerate.utils import DistributedType

    # Without a named backend Accelerate counts one process per rank on a CPU.
    state, expected = PartialState(backend="nccl" if cuda else "gloo"), launched_as()
    if state.distributed_type != DistributedType.DEEPSPEED or state.num_processes != expected.world_size:
        raise RuntimeError(
            f"Accelerate made {state.distributed_type} of {state.num_processes} processes, "
            f"not DeepSpeed of {expected.world_size}"
        )
    return replace(expected, rank=state.process_index, device=state.device)


def quiet_deepspeed(cuda: bool) -> None:
    """Import DeepSpeed without what it compiles for a CPU, and leave only its errors."""
    import deepspeed.ops
    from deepspeed.utils import logger

    if not cuda:
        # Else every CPU run compiles a shared-memory op with ninja, minutes long, that training does not use. CUDA has no such
        # op, and to touch this table looks for the compilers of all others.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    logger.setLevel("ERROR")
