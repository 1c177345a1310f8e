"""Phases: whatever is nested in whatever, each moment is charged once and none is lost."""

import itertools
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st

from pipeline.profiling.clock import COMMUNICATION, OTHER, Clock, timed_collectives

CPU = torch.device("cpu")
NAMES = ("data", "d_step", "g_step", "checkpoint")
Tree = list[Any]
"""Of seconds that pass, and of (phase, Tree) that happen."""
trees = st.recursive(
    st.lists(st.integers(1, 50), max_size=3),
    lambda inner: st.lists(st.integers(1, 50) | st.tuples(st.sampled_from(NAMES), inner), max_size=4),
    max_leaves=20,
)


class Time:
    """Stands still but where a test lets it go on."""

    def __init__(self) -> None:
        self.now = 0

    def perf_counter(self) -> int:
        return self.now


def live(clock: Clock, passing: Time, tree: Tree, inside: str, expected: dict[str, int]) -> None:
    for node in tree:
        if isinstance(node, int):
            passing.now += node
            expected[inside] = expected.get(inside, 0) + node
        else:
            with clock.phase(node[0]):
                live(clock, passing, node[1], node[0], expected)


@given(st.lists(trees, min_size=1, max_size=4))
def test_each_moment_belongs_to_the_innermost_phase(laps: list[Tree]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        passing = Time()
        patch.setattr("pipeline.profiling.clock.time", passing)
        clock, total = Clock(CPU), {}
        for tree in laps:
            expected: dict[str, int] = {}
            began = passing.now
            live(clock, passing, tree, OTHER, expected)
            lap = {name: seconds for name, seconds in clock.lap().items() if seconds}
            assert lap == pytest.approx(expected)
            assert sum(lap.values()) == pytest.approx(passing.now - began)
            total = {name: total.get(name, 0) + expected.get(name, 0) for name in total | expected}
        assert {name: s for name, s in clock.totals.items() if s} == pytest.approx(total)


def test_a_phase_that_fails_is_charged_and_closed() -> None:
    clock = Clock(CPU)
    with pytest.raises(KeyError), clock.phase("data"):
        raise KeyError
    assert clock.lap()["data"] >= 0 and set(clock.lap()) == {OTHER}


def test_a_lap_inside_a_phase_splits_it() -> None:
    clock, began = Clock(CPU), time.perf_counter()
    with clock.phase("logging"):
        first = clock.lap()
        sum(range(100_000))
        second = clock.lap()
    assert set(second) == {"logging"} and second["logging"] > 0
    assert sum(first.values()) + sum(second.values()) + sum(clock.lap().values()) <= time.perf_counter() - began + 1e-3


def test_the_memory_of_a_clock_is_bounded() -> None:
    clock = Clock(CPU)
    for _ in itertools.repeat(None, 5000):
        with clock.phase("data"):
            pass
    assert len(clock._ended) <= 2002


def test_collectives_are_a_phase_of_their_own_but_not_those_of_another_thread(tmp_path: Path) -> None:
    plain = dist.all_reduce
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        clock = Clock(CPU)
        with timed_collectives(clock):
            with clock.phase("d_step"):
                dist.all_reduce(torch.ones(1_000_000))
            assert set(clock.lap()) == {OTHER, "d_step", COMMUNICATION}
            thread = threading.Thread(target=dist.all_reduce, args=(torch.ones(10),))
            thread.start()
            thread.join()
            assert set(clock.lap()) == {OTHER}
        assert dist.all_reduce is plain
        dist.all_reduce(torch.ones(1))
        assert set(clock.lap()) == {OTHER}
    finally:
        dist.destroy_process_group()
