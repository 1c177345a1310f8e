"""The arithmetic of ranks, micro-batches and batch-norm groups, over every small way to share a batch."""

import re
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pipeline.engine.batch import BatchConfig, BatchPlan, micro_batches, plan_batch
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


def assert_groups(plan: BatchPlan) -> None:
    """Each group is held at once, by one rank or by neighbours.

    What `pipeline.engine.zero.share_batch_norm` forms: parts of a micro-batch, or `ranks_per_group` ranks from a multiple.
    """
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


@given(plans())
def test_a_norm_group_is_held_at_once_by_one_rank_or_by_neighbours(plan: BatchPlan) -> None:
    assert_groups(plan)


KEY = re.compile(r"batch\.(\w+)=(\d+)")


def ways(message: str) -> list[dict[str, int]]:
    """What a refusal says to type instead: sets of keys, or a number of ranks."""
    _, _, typed = message.partition(": set ")
    assert typed, message
    found: list[dict[str, int]] = []
    for way in typed.split(" or "):
        ranks = re.fullmatch(r"train on (\d+) ranks", way)
        found.append({"ranks": int(ranks[1])} if ranks else {key: int(value) for key, value in KEY.findall(way)})
    return found


@pytest.mark.long
@settings(max_examples=400)
@given(
    total=st.integers(1, 64) | st.sampled_from([2047, 2048, 2304]),
    group=st.integers(1, 64) | st.sampled_from([256, 512, 2048]),
    micro=st.none() | st.just("auto") | st.integers(1, 64),
    ranks=st.integers(1, 12),
)
def test_a_batch_is_shared_as_configured_or_every_suggestion_works_as_typed(
    total: int, group: int, micro: Any, ranks: int
) -> None:
    config = BatchConfig(total, group, micro)
    try:
        plan = plan_batch(config, ranks)
    except ConfigError as error:
        message = str(error)
    else:
        assert (plan.global_batch, plan.norm_group, plan.world_size) == (total, group, ranks)
        assert plan.accumulation * ranks * plan.micro_batch == total
        assert plan.micro_batch == (micro if isinstance(micro, int) else micro_batches(config, ranks)[-1])
        assert_groups(plan)
        return
    assert "\n" not in message
    assert message.startswith((f"batch.global_batch={total} ", f"batch.norm_group={group} "))
    for way in ways(message):
        on = way.pop("ranks", ranks)
        assert_groups(plan_batch(replace(config, **way), on))  # type: ignore[arg-type]


@pytest.mark.long
@given(total=st.integers(1, 96), group=st.integers(1, 96), ranks=small)
def test_no_micro_batch_is_overlooked_and_no_nearer_batch(total: int, group: int, ranks: int) -> None:
    def holds(batch: int, micro: int) -> bool:
        """By definition: micro-batches fill the batch, and no group is torn between micro-steps or unlike ranks."""
        if batch % (ranks * micro):
            return False
        return (ranks * micro) % group == 0 and (group % micro == 0 or micro % group == 0)

    config = BatchConfig(total, group)
    try:
        found = micro_batches(config, ranks)
    except ConfigError as error:
        assert not any(holds(total, micro) for micro in range(1, total + 1))
        named = sorted(way["global_batch"] for way in ways(str(error)) if "global_batch" in way)
        works = [n for n in range(1, 2 * total + ranks * group + 1) if any(holds(n, micro) for micro in range(1, n + 1))]
        below, above = [n for n in works if n < total], [n for n in works if n > total]
        assert named == below[-1:] + above[:1]
    else:
        assert found == [micro for micro in range(1, total + 1) if holds(total, micro)]


@pytest.mark.parametrize(
    ("batch", "ranks", "said"),
    [
        (BatchConfig(33, 16), 2, "batch.global_batch=32 or batch.global_batch=48"),
        (BatchConfig(2048, 2048, 64), 8, "batch.micro_batch=256 or batch.norm_group=512 or train on 32 ranks"),
        (BatchConfig(2048, 2048, 512), 2, "batch.micro_batch=1024 or batch.norm_group=1024 or train on 4 ranks"),
        (BatchConfig(40, 16, 8), 2, "batch.norm_group=10 batch.micro_batch=5"),
        (BatchConfig(96, 16, 10), 2, "set batch.micro_batch=8"),
    ],
)
def test_a_refusal_names_the_least_change(batch: BatchConfig, ranks: int, said: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)):
        plan_batch(batch, ranks)


@given(plans(), small)
def test_more_memory_or_ranks_never_change_the_groups(plan: BatchPlan, ranks: int) -> None:
    """The same experiment on other machines is refused or holds the same batch and the same groups."""
    try:
        other = plan_batch(BatchConfig(plan.global_batch, plan.norm_group), ranks)
    except ConfigError:
        assume(False)
    assert (other.global_batch, other.norm_group) == (plan.global_batch, plan.norm_group)


def test_without_a_micro_batch_a_rank_takes_its_whole_share_or_most_of_it_for_whole_groups() -> None:
    assert plan_batch(BatchConfig(96, 32), 3) == BatchPlan(96, 32, 1, 3, 32)
    assert plan_batch(BatchConfig(96, 32), 4) == BatchPlan(96, 8, 3, 4, 32)


def test_a_limit_of_memory_without_a_search_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^memory_gb=2.0: only micro_batch=auto"):
        BatchConfig(8, 8, 4, memory_gb=2.0)
    with pytest.raises(ValueError, match=r"^memory_gb=-1: must be above 0"):
        BatchConfig(8, 8, "auto", memory_gb=-1)


@pytest.mark.parametrize("name", ["global_batch", "norm_group", "micro_batch", "d_steps"])
def test_nothing_may_be_below_one(name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name}=0: must be at least 1"):
        BatchConfig(**{"global_batch": 8, "norm_group": 8, name: 0})
