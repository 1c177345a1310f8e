"""The arithmetic of ranks, micro-batches and batch-norm groups, over every small way to share a batch."""

import re

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from pipeline.batch import BatchConfig, BatchPlan, plan_batch
from pipeline.errors import ConfigError

small = st.integers(1, 8)


@st.composite
def plans(draw: st.DrawFn) -> BatchPlan:
    """Plans that hold by construction: accumulation x ranks x micro-batch, and a group that divides what ranks hold."""
    micro, ranks, accumulation = draw(small), draw(small), draw(small)
    inside = [g for g in range(1, micro + 1) if micro % g == 0]
    across = [micro * r for r in range(1, ranks + 1) if ranks % r == 0]
    config = BatchConfig(accumulation * ranks * micro, draw(st.sampled_from(inside + across)), micro)
    return plan_batch(config, ranks)


@given(plans())
def test_each_sample_of_a_global_batch_is_taken_once(plan: BatchPlan) -> None:
    starts = [plan.start(step, rank) for step in range(plan.accumulation) for rank in range(plan.world_size)]
    taken = [start + i for start in starts for i in range(plan.micro_batch)]
    assert taken == list(range(plan.global_batch))


@given(plans())
def test_a_norm_group_is_held_at_once_by_one_rank_or_by_neighbours(plan: BatchPlan) -> None:
    """What `pipeline.engines.share_batch_norm` forms: parts of a micro-batch, or `ranks_per_group` ranks from a multiple."""
    holders: dict[int, set[tuple[int, int]]] = {}
    for step in range(plan.accumulation):
        for rank in range(plan.world_size):
            for i in range(plan.micro_batch):
                group = (plan.start(step, rank) + i) // plan.norm_group
                holders.setdefault(group, set()).add((step, rank))
    for held in holders.values():
        assert len({step for step, _ in held}) == 1
        ranks = sorted(rank for _, rank in held)
        assert len(ranks) == plan.ranks_per_group
        assert ranks == list(range(ranks[0], ranks[0] + len(ranks)))
        assert ranks[0] % plan.ranks_per_group == 0
    assert plan.ranks_per_group == 1 or plan.norm_group == plan.ranks_per_group * plan.micro_batch


@given(total=st.integers(1, 64), group=st.integers(1, 64), micro=st.none() | small, ranks=small)
def test_a_refusal_names_a_value_that_works(total: int, group: int, micro: int | None, ranks: int) -> None:
    try:
        plan_batch(BatchConfig(total, group, micro), ranks)
    except ConfigError as error:
        message = str(error)
    else:
        assume(False)
    assert "\n" not in message
    if message.startswith("batch.global_batch"):
        named = re.search(r"use (\d+)(?: or (\d+))?", message)
        assert named, message
        for value in (int(v) for v in named.groups() if v):
            assert plan_batch(BatchConfig(value, 1, micro), ranks).global_batch == value
    else:
        assert message.startswith("batch.norm_group"), message
        nearest = int(re.search(r"nearest that does is (\d+)", message)[1])  # type: ignore[index]
        assert plan_batch(BatchConfig(total, nearest, micro), ranks).norm_group == nearest


@given(plans(), small)
def test_more_memory_or_ranks_never_change_the_groups(plan: BatchPlan, ranks: int) -> None:
    """The same experiment on other machines is refused or holds the same batch and the same groups."""
    try:
        other = plan_batch(BatchConfig(plan.global_batch, plan.norm_group), ranks)
    except ConfigError:
        assume(False)
    assert (other.global_batch, other.norm_group) == (plan.global_batch, plan.norm_group)
    assert other.accumulation == 1


def test_without_a_micro_batch_a_rank_takes_its_whole_share() -> None:
    assert plan_batch(BatchConfig(96, 32), 3) == BatchPlan(96, 32, 1, 3, 32)


@pytest.mark.parametrize("name", ["global_batch", "norm_group", "micro_batch", "d_steps"])
def test_nothing_may_be_below_one(name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name}=0: must be at least 1"):
        BatchConfig(**{"global_batch": 8, "norm_group": 8, name: 0})
