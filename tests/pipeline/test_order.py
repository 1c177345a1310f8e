import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.index import Shard
from pipeline.order import LANES, WINDOW, Order, flips


@st.composite
def shard_lists(draw: st.DrawFn) -> list[Shard]:
    sizes = draw(st.lists(st.integers(1, 400), min_size=1, max_size=6))
    per_sample = draw(st.sampled_from([600, 5_000, 40_000, 200_000]))
    return [Shard(f"{i:06d}.tar", n, n * per_sample, 0, 0) for i, n in enumerate(sizes)]


@settings(max_examples=60, deadline=None)
@given(shard_lists(), st.integers(0, 2**63), st.integers(0, 5))
def test_every_sample_is_seen_once_per_epoch(shards: list[Shard], seed: int, epoch: int) -> None:
    order = Order(shards, seed)
    n = sum(shard.samples for shard in shards)
    assert order.samples == n
    epochs, samples = order.batch(epoch * n, n)
    assert (epochs == epoch).all()
    np.testing.assert_array_equal(np.sort(samples), np.arange(n))


@settings(max_examples=60, deadline=None)
@given(shard_lists(), st.integers(0, 2**32), st.integers(0, 3000), st.integers(1, 700))
def test_a_batch_is_a_pure_function_of_its_position(shards: list[Shard], seed: int, position: int, size: int) -> None:
    """Jumping to a position gives what walking there gives, also across the ends of epochs."""
    walked, jumped = Order(shards, seed), Order(shards, seed)
    sequence = np.concatenate([np.stack(walked.batch(p, 97)) for p in range(0, position + size, 97)], axis=1)
    np.testing.assert_array_equal(np.stack(jumped.batch(position, size)), sequence[:, position : position + size])


def big(samples: int = 20_000, per_sample: int = 25_000) -> list[Shard]:
    return [Shard(f"{i:06d}.tar", samples // 20, samples // 20 * per_sample, 0, 0) for i in range(20)]


def test_seeds_and_epochs_differ() -> None:
    orders = [Order(big(), 1).batch(0, 480)[1], Order(big(), 2).batch(0, 480)[1], Order(big(), 1).batch(20_000, 480)[1]]
    for i in range(3):
        for j in range(i):
            assert (orders[i] == orders[j]).mean() < 0.01


def test_a_batch_draws_from_all_over_the_data() -> None:
    """96 samples come from 20 shards about as evenly as independent draws would."""
    for position in range(0, 20_000, 960):
        _, samples = Order(big(), 3).batch(position, 96)
        assert len(np.unique(samples // 1000)) >= 16  # independent draws: below 16 once in 2 million


def test_few_runs_are_open_at_a_time() -> None:
    """The working set stays near LANES * WINDOW runs, so that a cache of that many reads every run about once."""
    order = Order(big(), 5)
    runs = order.run_of(order.batch(0, order.samples)[1])
    first = {run: i for i, run in reversed(list(enumerate(runs.tolist())))}
    last = {run: i for i, run in enumerate(runs.tolist())}
    delta = np.zeros(order.samples + 1, int)
    for run in first:
        delta[first[run]] += 1
        delta[last[run] + 1] -= 1
    assert np.cumsum(delta).max() <= LANES * (WINDOW + 2)


def test_lanes_follow_positions_and_the_remainder_is_its_own() -> None:
    order = Order([Shard("000000.tar", 100, 10_000, 0, 0)], 0)
    assert order.lanes(0, 100).tolist() == [*range(48), *range(48), 48, 48, 48, 48]
    assert order.lanes(99, 3).tolist() == [48, 0, 1]


def test_a_set_smaller_than_the_lanes_is_shuffled() -> None:
    order = Order([Shard("000000.tar", 40, 4_000, 0, 0)], 0)
    assert order.batch(0, 40)[1].tolist() != order.batch(40, 40)[1].tolist() != list(range(40))


def test_order_is_the_one_that_stored_runs_were_trained_with() -> None:
    """To change these numbers is to change the images under every run in progress."""
    assert Order(big(), 7).batch(19_998, 4)[1].tolist() == [17578, 17577, 1215, 9043]
    assert np.flatnonzero(flips(7, np.zeros(8, np.int64), np.arange(8))).tolist() == [3, 5]


def test_flips_are_half_and_keyed_by_seed_epoch_and_sample() -> None:
    samples = np.arange(20_000)
    base = flips(1, np.zeros(20_000, np.int64), samples)
    assert base.mean() == pytest.approx(0.5, abs=0.02)
    for other in (flips(2, np.zeros(20_000, np.int64), samples), flips(1, np.ones(20_000, np.int64), samples)):
        assert (base == other).mean() == pytest.approx(0.5, abs=0.02)
    backwards = flips(1, np.zeros(20_000, np.int64), samples[::-1])
    np.testing.assert_array_equal(backwards[::-1], base)
