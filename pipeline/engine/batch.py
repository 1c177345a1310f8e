"""How a global batch is shared: the arithmetic of ranks, micro-batches, accumulation and batch-norm groups.

The global batch is the experiment; everything else follows from it and from the machines. Sample i of a global batch
goes to micro-step i // (W m), rank (i % (W m)) // m, where W ranks take micro-batches of m. So every run of consecutive
samples that is a batch-norm group stays together, in one micro-batch or on neighbouring ranks in the same micro-step.
"""

import math
from dataclasses import dataclass
from typing import Annotated, Literal

from pipeline.bounds import Bounds, check_bounds
from pipeline.errors import ConfigError
from pipeline.wording import plural


@dataclass(frozen=True)
class BatchConfig:
    """The batch as the experiment sees it, and the memory that a rank has for it."""

    global_batch: Annotated[int, Bounds(ge=1)]
    """Real images in one optimiser step of D, and fakes in one of G, over all ranks."""
    norm_group: Annotated[int, Bounds(ge=1)]
    """Samples that share batch-norm statistics. Part of the mathematics, unlike ranks and micro-batch."""
    micro_batch: Annotated[int | Literal["auto"] | None, Bounds(ge=1)] = None
    """Images that one rank takes through the networks at once. auto: the most that fit into memory, found by trying once in a
    run. Default: its whole share of the global batch, or the largest part of it that holds whole groups."""
    memory_gb: Annotated[float | None, Bounds(gt=0)] = None
    """For micro_batch=auto, 10^9 bytes that a rank may use (on a GPU: torch's share). Default: 90 % of what is free."""
    d_steps: Annotated[int, Bounds(ge=1)] = 1
    """Optimiser steps of D for one of G; each uses a global batch of its own."""

    def __post_init__(self) -> None:
        check_bounds(self)
        if self.memory_gb is not None and self.micro_batch != "auto":
            raise ValueError(f"memory_gb={self.memory_gb}: only micro_batch=auto uses it: set batch.micro_batch=auto")


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


def micro_batches(config: BatchConfig, world_size: int) -> list[int]:
    """Every micro-batch, ascending, that shares the batch among `world_size` ranks without a change to its groups.

    Raises ConfigError if there is none, with the nearest batches and groups that have one.
    """
    if found := _micro_batches(config.global_batch, config.norm_group, world_size):
        return found
    total, group = config.global_batch, config.norm_group
    unit = math.lcm(world_size, group)
    totals = [_typed(config, world_size, global_batch=value) for value in _around(total, unit)]
    if total % world_size:
        raise ConfigError(
            f"batch.global_batch={total} cannot be shared by {plural(world_size, 'rank')} in whole groups of {group}: set "
            + " or ".join(totals)
        )
    divisors = [value for value in range(1, total + 1) if total % value == 0]
    below, above = [g for g in divisors if g < group], [g for g in divisors if g > group]
    groups = [_typed(config, world_size, norm_group=value) for value in below[-1:] + above[:1]]
    raise ConfigError(
        f"batch.norm_group={group} does not divide batch.global_batch={total}: set {' or '.join(groups + totals)}"
    )


def plan_batch(config: BatchConfig, world_size: int) -> BatchPlan:
    """Share `config.global_batch` among `world_size` ranks, in the largest micro-batches where none is given.

    Raises ConfigError with what to type instead.
    """
    total, group = config.global_batch, config.norm_group
    found = micro_batches(config, world_size)
    micro = config.micro_batch if isinstance(config.micro_batch, int) else found[-1]
    if micro in found:
        return BatchPlan(total, micro, total // (world_size * micro), world_size, group)
    ways = [_typed(config, world_size, micro_batch=_nearest(micro, found))]
    together = world_size * micro
    if total % together:
        if _fits(group, world_size, micro):
            ways += [_typed(config, world_size, global_batch=value) for value in _around(total, together)]
        raise ConfigError(
            f"batch.global_batch={total} cannot be shared by {plural(world_size, 'rank')} in micro-batches of {micro}: "
            f"set {' or '.join(ways)}"
        )
    groups = [g for g in range(1, together + 1) if _fits(g, world_size, micro)]
    ways.append(_typed(config, world_size, norm_group=_nearest(group, groups)))
    enough = (n for n in range(world_size + 1, total // micro + 1) if total % (n * micro) == 0 and _fits(group, n, micro))
    if ranks := next(enough, None):
        ways.append(f"train on {ranks} ranks")
    raise ConfigError(
        f"batch.norm_group={group} does not fit the {together} samples at once of {plural(world_size, 'rank')} in "
        f"micro-batches of {micro}: set {' or '.join(ways)}"
    )


def _fits(group: int, ranks: int, micro: int) -> bool:
    """Whether every group lies inside one micro-batch, or is a whole number of them in one micro-step."""
    return ranks * micro % group == 0 and (group % micro == 0 or micro % group == 0)


def _micro_batches(total: int, group: int, ranks: int) -> list[int]:
    """Empty exactly if the ranks or the group do not divide the batch: else group / gcd(group, ranks) is one."""
    share = total // ranks if total % ranks == 0 else 0
    return [micro for micro in range(1, share + 1) if share % micro == 0 and _fits(group, ranks, micro)]


def _around(total: int, unit: int) -> list[int]:
    """The nearest multiples of `unit` below and above `total`, which is none."""
    below = total // unit * unit
    return [value for value in (below, below + unit) if value]


def _nearest(value: int, among: list[int]) -> int:
    """The largest that is no larger than `value`, or the smallest."""
    return max((one for one in among if one <= value), default=among[0])


def _typed(config: BatchConfig, ranks: int, **change: int) -> str:
    """`change` as arguments, with another micro-batch where the given one does not go together with it."""
    new = {"global_batch": config.global_batch, "norm_group": config.norm_group} | change
    if isinstance(config.micro_batch, int) and "micro_batch" not in change:
        found = _micro_batches(new["global_batch"], new["norm_group"], ranks)
        if config.micro_batch not in found:
            change["micro_batch"] = _nearest(config.micro_batch, found)
    return " ".join(f"batch.{key}={value}" for key, value in change.items())
