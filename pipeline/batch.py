"""How a global batch is shared: the arithmetic of ranks, micro-batches, accumulation and batch-norm groups.

The global batch is the experiment; everything else follows from it and from the machines. Sample i of a global batch
goes to micro-step i // (W m), rank (i % (W m)) // m, where W ranks take micro-batches of m. So every run of consecutive
samples that is a batch-norm group stays together, in one micro-batch or on neighbouring ranks in the same micro-step.
"""

from dataclasses import dataclass

from pipeline.errors import ConfigError


@dataclass(frozen=True)
class BatchConfig:
    """The batch as the experiment sees it, and the memory that a rank has for it."""

    global_batch: int
    """Real images in one optimiser step of D, and fakes in one of G, over all ranks."""
    norm_group: int
    """Samples that share batch-norm statistics. Part of the mathematics, unlike ranks and micro-batch."""
    micro_batch: int | None = None
    """Images that one rank takes through the networks at once. Default: its whole share of the global batch."""
    d_steps: int = 1
    """Optimiser steps of D for one of G; each uses a global batch of its own."""

    def __post_init__(self) -> None:
        for name in ("global_batch", "norm_group", "micro_batch", "d_steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value}: must be at least 1")


@dataclass(frozen=True)
class BatchPlan:
    """What each rank does for one global batch."""

    global_batch: int
    micro_batch: int
    accumulation: int
    world_size: int
    norm_group: int

    @property
    def ranks_per_group(self) -> int:
        """Neighbouring ranks that share batch-norm statistics."""
        return max(1, self.norm_group // self.micro_batch)

    def start(self, micro_step: int, rank: int) -> int:
        """Place in the global batch of the first sample of a rank's micro-batch."""
        return (micro_step * self.world_size + rank) * self.micro_batch


def plan_batch(config: BatchConfig, world_size: int) -> BatchPlan:
    """Share `config.global_batch` among `world_size` ranks. Raises ConfigError with the nearest batch or group that works."""
    total, group = config.global_batch, config.norm_group
    if config.micro_batch is None and total % world_size:
        raise ConfigError(
            f"batch.global_batch={total} cannot be shared by {world_size} ranks: {_nearest_multiples(total, world_size)}"
        )
    micro = config.micro_batch or total // world_size
    together = world_size * micro
    if total % together:
        raise ConfigError(
            f"batch.global_batch={total} cannot be shared by {world_size} ranks in micro-batches of {micro}: "
            f"{_nearest_multiples(total, together)}, or another batch.micro_batch"
        )
    if not _fits(group, world_size, micro):
        working = [g for g in range(1, together + 1) if _fits(g, world_size, micro)]
        nearest = min(working, key=lambda g: abs(g - group))
        raise ConfigError(
            f"batch.norm_group={group} does not fit the {together} samples that {world_size} ranks hold at once in "
            f"micro-batches of {micro}: the nearest that does is {nearest}"
            + ("; a larger one needs more ranks or a larger batch.micro_batch" if together < group <= total else "")
        )
    return BatchPlan(total, micro, total // together, world_size, group)


def _fits(group: int, ranks: int, micro: int) -> bool:
    """Whether every group lies inside one micro-batch, or is a whole number of them in one micro-step."""
    return ranks * micro % group == 0 and (group % micro == 0 or micro % group == 0)


def _nearest_multiples(total: int, unit: int) -> str:
    below = total // unit * unit
    return f"use {below} or {below + unit}" if below else f"use {unit}"
