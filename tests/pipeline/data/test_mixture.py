from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.manifest import Manifest, Part, Shard
from pipeline.data.mixture import Mixture, make_order, part_seed
from pipeline.data.order import Order, OrderRule, flips
from pipeline.errors import ConfigError


def mixture(sizes: list[int], weights: list[float] | list[int], seed: int = 3, lanes: int = 48) -> Mixture:
    """Each part in two shards."""
    orders = []
    for i, n in enumerate(sizes):
        shards = [Shard(f"{i}-{j}.tar", k, k * 20_000, 0, 0) for j, k in enumerate((n - n // 3, n // 3))]
        orders.append(Order(shards, part_seed(seed, i), lanes))
    return Mixture(orders, weights, seed)


@st.composite
def mixtures(draw: st.DrawFn) -> Mixture:
    sizes = draw(st.lists(st.integers(1, 500), min_size=1, max_size=5))
    numbers = st.one_of(st.integers(1, 10**9), st.floats(1e-2, 1e2))
    weights = draw(st.lists(numbers, min_size=len(sizes), max_size=len(sizes)))
    weights = [max(weight, max(weights) * 1e-3) for weight in weights]
    return mixture(sizes, weights, draw(st.integers(0, 2**63)), draw(st.sampled_from([1, 5, 48, 64])))


@settings(max_examples=60)
@given(mixtures())
def test_every_position_of_every_part_is_taken_once(mixed: Mixture) -> None:
    """In each lane the positions of a part come one after the other, from the first on: none is skipped or repeated."""
    parts, places = mixed.parts(np.arange(60 * mixed.lane_count))
    for part in range(len(mixed.orders)):
        for lane in range(mixed.lane_count):
            mine = places[lane :: mixed.lane_count][parts[lane :: mixed.lane_count] == part]
            np.testing.assert_array_equal(mine, lane + mixed.lane_count * np.arange(len(mine)))


@pytest.mark.long
@settings(max_examples=25)
@given(mixtures())
def test_every_sample_of_a_part_is_seen_once_per_own_epoch(mixed: Mixture) -> None:
    epochs, samples = mixed.batch(0, 4_000)
    assert len(np.unique(np.stack([epochs, samples]), axis=1).T) == 4_000
    for part, (order, share) in enumerate(zip(mixed.orders, mixed.shares, strict=True)):
        seen = epochs[mixed.part_of(samples) == part]
        whole = int((share * 4_000 - 2 * mixed.lane_count * len(mixed.orders)) / order.samples)
        assert (np.bincount(seen, minlength=max(whole, 0))[: max(whole, 0)] == order.samples).all()


@settings(max_examples=60)
@given(mixtures(), st.integers(0, 10**12))
def test_shares_are_exact_at_any_number_of_positions(mixed: Mixture, position: int) -> None:
    parts, places = mixed.parts(np.arange(5_000))
    counts = np.cumsum(parts == np.arange(len(mixed.orders))[:, None], axis=1)
    shares = np.array([float(share) for share in mixed.shares])
    bound = max(1, mixed.lane_count * (len(shares) - 1))
    assert (np.abs(counts - shares[:, None] * np.arange(1, 5_001)) <= bound + 1e-6).all()
    row = position // mixed.lane_count  # far away: what the lanes have had shows in the places that they are at
    parts, places = mixed.parts(position + np.arange(mixed.lane_count))
    rows = places // mixed.lane_count  # of that part before, in this lane
    assert (np.abs(rows - shares[parts] * row) <= len(shares) + 1e-3).all()
    assert (rows <= row + 1).all()


@given(st.integers(1, 10**6), st.integers(1, 10**6), st.integers(0, 10**4))
def test_two_parts_have_their_share_of_every_row_to_one_sample(one: int, other: int, row: int) -> None:
    mixed = mixture([100, 100], [one, other])
    first, second = (len(np.flatnonzero(mixed.parts(48 * row + np.arange(48))[0] == part)) for part in (0, 1))
    share = Fraction(one, one + other)
    assert first == int(48 * (row + 1) * share) - int(48 * row * share)
    assert first + second == 48


@pytest.mark.long
@settings(max_examples=30)
@given(mixtures(), st.integers(0, 3000), st.integers(1, 700))
def test_a_batch_is_a_pure_function_of_its_position(mixed: Mixture, position: int, size: int) -> None:
    sequence = np.concatenate([np.stack(mixed.batch(p, 97)) for p in range(0, position + size, 97)], axis=1)
    again = Mixture(mixed.orders, [float(share) for share in mixed.shares], mixed.seed)
    np.testing.assert_array_equal(np.stack(again.batch(position, size)), sequence[:, position : position + size])
    shuffled = np.random.default_rng(0).permutation(size) + position
    np.testing.assert_array_equal(np.stack(mixed.at(shuffled)), sequence[:, shuffled])


@pytest.mark.long
@settings(max_examples=15)
@given(mixtures(), st.integers(0, 9), st.sampled_from([1, 2, 3, 4, 5, 6, 8, 16, 32, 64]), st.sampled_from([1, 3, 5]))
def test_the_global_batch_is_the_same_for_every_world_size(mixed: Mixture, at: int, world: int, micro: int) -> None:
    """Slices as the stream takes them: of the batch sorted by lane, rank r's micro-step a is [a * W * m + r * m, + m)."""
    batch = 960 * micro
    theirs = np.full((2, batch), -1)
    for rank in range(world):
        by_lane = np.argsort(mixed.lanes(at * batch, batch), kind="stable")
        for a in range(batch // (world * micro)):
            mine = by_lane[a * world * micro + rank * micro :][:micro]
            assert (theirs[:, mine] == -1).all()
            theirs[:, mine] = mixed.at(at * batch + mine)
    np.testing.assert_array_equal(theirs, mixed.batch(at * batch, batch))


@pytest.mark.parametrize(
    ("sizes", "strays"), [([10_000, 5_000, 2_000], 40), ([10_000, 5_000], 20), ([60_000, 900, 200, 14_000], 60)]
)
def test_weights_that_are_the_sizes_make_one_epoch_of_the_whole(sizes: list[int], strays: int) -> None:
    """But for a few samples of the last rows, which the lanes do not end at the same position."""
    mixed = mixture(sizes, sizes)
    epochs, samples = mixed.batch(0, mixed.samples)
    assert len(np.unique(samples)) >= mixed.samples - strays
    assert epochs.sum() <= strays


def test_one_part_is_that_part() -> None:
    mixed = mixture([1000], [0.3], seed=9)
    order = mixed.orders[0]
    assert (mixed.seed, mixed.samples) == (order.seed, order.samples)
    np.testing.assert_array_equal(mixed.batch(2900, 1500), order.batch(2900, 1500))
    np.testing.assert_array_equal(mixed.lanes(2900, 1500), order.lanes(2900, 1500))
    np.testing.assert_array_equal(mixed.starts, order.starts)
    assert mixed.amplification(96, 8, 4) == order.amplification(96, 8, 4)


def test_ranks_read_no_run_twice_for_the_mixture() -> None:
    """Each rank draws from as many lanes of each part as it would without the others."""
    mixed = mixture([20_000, 9_000], [0.7, 0.3])
    readers: list[set[int]] = [set() for _ in range(8)]
    for start in range(0, 20_160, 96):
        by_lane = start + np.argsort(mixed.lanes(start, 96), kind="stable")
        for rank, mine in enumerate(by_lane.reshape(8, 12)):
            epochs, samples = mixed.at(mine)
            readers[rank] |= set(mixed.run_of(samples[epochs == 0]).tolist())
    assert sum(map(len, readers)) <= 1.2 * len(set.union(*readers))  # the ends of lanes cut runs
    assert mixed.amplification(96, 12, 8) == 1
    assert mixed.amplification(96, 3, 8) > 1.3  # slices of 3 cut lanes that have 2 positions in a batch


def test_every_rank_gets_every_part() -> None:
    """A slice has its share of each part, so that no rank's statistics are those of one part alone."""
    mixed = mixture([5_000, 5_000, 5_000], [2, 1, 1])
    counts = np.zeros((8, 3))
    for start in range(0, 9_600, 96):
        parts, _ = mixed.parts(start + np.argsort(mixed.lanes(start, 96), kind="stable"))
        for rank, mine in enumerate(parts.reshape(8, 12)):
            counts[rank] += np.bincount(mine, minlength=3)
    np.testing.assert_allclose(counts / 1200, [[0.5, 0.25, 0.25]] * 8, atol=0.02)


def test_runs_and_parts_of_samples() -> None:
    mixed = mixture([1000, 500], [1, 1])
    first, second = mixed.orders
    assert mixed.part_of(np.array([0, 999, 1000, 1499])).tolist() == [0, 0, 1, 1]
    assert mixed.run_of(np.array([0, 999, 1000])).tolist() == [0, len(first.starts) - 2, len(first.starts) - 1]
    np.testing.assert_array_equal(np.diff(mixed.starts), np.concatenate([np.diff(first.starts), np.diff(second.starts)]))


def test_parts_share_neither_flips_nor_seeds() -> None:
    """Ids of parts differ, and with them flips; parts that are the same set twice are in different orders."""
    mixed = mixture([5_000, 5_000], [1, 1])
    both = flips(mixed.seed, np.zeros(10_000, np.int64), np.arange(10_000))
    assert (both[:5_000] == both[5_000:]).mean() == pytest.approx(0.5, abs=0.04)
    one, other = (order.batch(0, 5_000)[1] for order in mixed.orders)
    assert (one == other).mean() < 0.01
    assert len({part_seed(7, i) for i in range(100)}) == 100


def test_mixture_is_the_one_that_stored_runs_were_trained_with() -> None:
    """To change these numbers is to change the images under every run in progress."""
    mixed = mixture([1000, 700, 300], [5, 3.5, 1.5], seed=7)
    assert mixed.batch(123_456, 6)[1].tolist() == [562, 1299, 290, 831, 941, 1657]


@pytest.mark.parametrize("weights", [[1.0], [1, 0], [1, -1], [1, float("nan")], [1, float("inf")]])
def test_weights_that_are_none_are_refused(weights: list[float]) -> None:
    with pytest.raises(ConfigError, match="one number above 0"):
        mixture([10, 10], weights)


@pytest.mark.parametrize("weights", [[1, 1e-9], [1e-9, 1]])
def test_a_weight_of_nothing_is_refused(weights: list[float]) -> None:
    with pytest.raises(ConfigError, match="leave that part out"):
        mixture([10, 10], weights)


def test_parts_of_different_lanes_are_refused() -> None:
    orders = [Order([Shard("0.tar", 10, 10_000, 0, 0)], 0, lanes) for lanes in (48, 64)]
    with pytest.raises(ConfigError, match=r"\[48, 64\]"):
        Mixture(orders, [1, 1], 0)


def test_going_back_changes_the_order_of_the_parts_and_not_which_part_stands_where() -> None:
    shards = [Shard(f"{i}.tar", 1000, 20_000_000, 0, 0) for i in range(4)]
    parts = (
        Part(uri="a", tars="", shards=1, weight=1.0, labels=(0,)),
        Part(uri="b", tars="", shards=3, weight=2.0, labels=(0,)),
    )
    manifest = Manifest(shards=tuple(shards), classes=("x",), class_counts=(4000,), resolution=32, channels=3, parts=parts)
    before, after = (make_order(manifest, OrderRule(3, 48, rollbacks)) for rollbacks in (0, 1))
    assert isinstance(before, Mixture) and isinstance(after, Mixture)
    (_, old), (_, new) = before.batch(0, 2000), after.batch(0, 2000)
    np.testing.assert_array_equal(before.part_of(old), after.part_of(new))
    assert (old == new).mean() < 0.01
