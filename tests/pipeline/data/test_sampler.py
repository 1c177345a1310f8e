import numpy as np
import pytest

from pipeline.data.manifest import Shard
from pipeline.data.order import Order
from pipeline.data.sampler import RankSampler
from pipeline.errors import ConfigError


def order(lanes: int) -> Order:
    return Order([Shard(f"{i}.tar", 1000, 1000 * 50_000, 0, 0) for i in range(200)], 0, lanes)


def read(share: RankSampler, plan_of: Order, steps: int) -> tuple[float, int]:
    """(bytes that all ranks read with a cache of `open_runs`, in runs, divided by the runs that are needed; most at a time)."""
    from collections import OrderedDict

    needed: set[int] = set()
    fetched, capacity = 0, share.open_runs(plan_of, 6)
    for rank in range(share.world_size):
        kept: OrderedDict[int, None] = OrderedDict()
        plans = RankSampler(share.global_batch, share.micro_batch, rank, share.world_size).plans(plan_of, 0)
        for _ in range(steps * share.global_batch // (share.micro_batch * share.world_size)):
            for run in np.unique(plan_of.run_of(next(plans).samples)).tolist():
                needed.add(run)
                fetched += run not in kept
                kept[run] = None
                kept.move_to_end(run)
                while len(kept) > capacity:
                    kept.popitem(last=False)
    return fetched / len(needed), capacity


@pytest.mark.parametrize(
    ("batch", "ranks", "lanes", "most"),
    [(960, 1, 48, 1.01), (960, 4, 48, 1.1), (960, 8, 48, 1.1), (2048, 8, 64, 1.1), (2048, 64, 64, 1.1), (1024, 128, 128, 1.1)],
)
def test_ranks_that_divide_the_lanes_read_each_byte_once(batch: int, ranks: int, lanes: int, most: float) -> None:
    share, plan_of = RankSampler(batch, batch // ranks, 0, ranks), order(lanes)
    assert share.amplification(plan_of) <= most
    assert read(share, plan_of, min(60, 1500 // ranks))[0] <= most


@pytest.mark.parametrize(("batch", "ranks", "lanes"), [(960, 5, 48), (960, 32, 48), (2048, 64, 16)])
def test_other_numbers_read_as_often_as_is_said(batch: int, ranks: int, lanes: int) -> None:
    share, plan_of = RankSampler(batch, batch // ranks, 0, ranks), order(lanes)
    said, found = share.amplification(plan_of), read(share, plan_of, 60)[0]
    assert 1.05 < found <= said * 1.2 and said <= found * 1.5


def test_a_batch_that_ranks_cannot_share_is_refused() -> None:
    with pytest.raises(ConfigError, match="must be a multiple of 64"):
        RankSampler(96, 32, 0, 2)
