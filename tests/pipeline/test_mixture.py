import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.index import Shard
from pipeline.mixture import Mixture
from pipeline.order import Order
from pipeline.share import Share


def order(samples: int, seed: int = 0, lanes: int = 48, per_sample: int = 40_000) -> Order:
    return Order([Shard("a.tar", samples, samples * per_sample, 0, 0)], seed, lanes)


WEIGHTS = st.lists(st.one_of(st.integers(1, 100).map(float), st.floats(1e-3, 1e3)), min_size=1, max_size=5)


@settings(max_examples=50, deadline=None)
@given(WEIGHTS, st.integers(0, 2**32), st.integers(0, 10**15), st.integers(1, 5000))
def test_parts_follow_their_weights_exactly(weights: list[float], seed: int, position: int, size: int) -> None:
    """After any number of positions each part has had its share, within a block; and no position is anybody's twice."""
    mixture = Mixture([order(100 + i) for i in range(len(weights))], weights, seed)
    parts, before = mixture._parts(position, size)
    _, after = mixture._parts(position + size, 1)
    assert np.bincount(parts, minlength=len(weights)).tolist() == [b - a for a, b in zip(before, after, strict=True)]
    assert sum(before) == position
    for had, weight in zip(before, weights, strict=True):
        assert abs(had - position * weight / sum(weights)) <= 1024 + position * 1e-12


@settings(max_examples=30, deadline=None)
@given(WEIGHTS, st.integers(0, 2**32), st.integers(0, 3000), st.integers(1, 700))
def test_a_batch_is_a_pure_function_of_its_position(weights: list[float], seed: int, position: int, size: int) -> None:
    walked, jumped = (Mixture([order(50 * i + 7) for i in range(len(weights))], weights, seed) for _ in range(2))
    steps = range(0, position + size, 97)
    sequence = np.concatenate([np.stack([*walked.batch(p, 97), walked.lanes(p, 97)]) for p in steps], axis=1)
    found = np.stack([*jumped.batch(position, size), jumped.lanes(position, size)])
    np.testing.assert_array_equal(found, sequence[:, position : position + size])


def test_one_part_is_that_part() -> None:
    alone, mixture = order(5000, 3), Mixture([order(5000, 3)], [0.7], 3)
    np.testing.assert_array_equal(np.stack(alone.batch(4000, 3000)), np.stack(mixture.batch(4000, 3000)))
    np.testing.assert_array_equal(alone.lanes(4000, 3000), mixture.lanes(4000, 3000))
    np.testing.assert_array_equal(alone.starts, mixture.starts)


def test_parts_by_their_sizes_make_one_epoch_of_the_whole() -> None:
    sizes = (9_000, 700, 12_300)
    mixture = Mixture([order(n, 1) for n in sizes], sizes, 1)
    epochs, samples = mixture.batch(0, sum(sizes))
    assert len(np.unique(samples)) >= sum(sizes) - 1024
    assert (epochs == 0).mean() > 0.95


def test_a_batch_mixes_and_its_runs_are_those_of_its_samples() -> None:
    mixture = Mixture([order(4000), order(1000)], [1, 1], 0)
    _, samples = mixture.batch(0, 64)
    assert 16 <= (samples < 4000).sum() <= 48  # a fair coin: outside once in 30,000
    runs = mixture.run_of(samples)
    assert ((mixture.starts[runs] <= samples) & (samples < mixture.starts[runs + 1])).all()


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from([1, 2, 3, 4, 5, 6, 8, 16, 32, 64]),
    st.integers(1, 3),
    st.sampled_from([1, 7, 48, 240]),
    st.integers(0, 9999),
)
def test_global_batches_are_the_same_for_every_number_of_ranks(ranks: int, micro: int, lanes: int, position: int) -> None:
    total = 960 * 2
    for plan_of in (order(3000, 5, lanes), Mixture([order(3000, 5, lanes), order(311, 5, lanes)], [2, 1], 5)):
        steps = total // 64 if ranks == 64 else total // ranks  # 64 ranks share 1920 samples, 30 each
        micro_batch = steps // micro if steps % micro == 0 else steps
        if total % (micro_batch * ranks):
            micro_batch = total // ranks
        found = []
        each = [Share(total, micro_batch, rank, ranks).plans(plan_of, position) for rank in range(ranks)]
        for _ in range(total // (micro_batch * ranks)):
            found += [next(plans) for plans in each]
        whole = next(Share(total, total).plans(plan_of, position))
        for field in ("samples", "epochs", "positions"):
            np.testing.assert_array_equal(np.concatenate([getattr(p, field) for p in found]), getattr(whole, field))


@pytest.mark.parametrize("shards", [[0, 5, 0, 3], [1], [1, 1, 1], [7, 100_000, 1]])
def test_uneven_shards(shards: list[int]) -> None:
    one = Order([Shard("a.tar", n, n * 5000, 0, 0) for n in shards], 2)
    for epoch in range(2):
        epochs, samples = one.batch(epoch * sum(shards), sum(shards))
        assert (epochs == epoch).all() and sorted(samples.tolist()) == list(range(sum(shards)))


def test_a_million_samples_in_one_epoch() -> None:
    one = Order([Shard("a.tar", 10_000, 10_000 * 110_000, 0, 0) for _ in range(100)], 2)
    _, samples = one.batch(0, 1_000_000)
    assert (np.bincount(samples, minlength=1_000_000) == 1).all()
