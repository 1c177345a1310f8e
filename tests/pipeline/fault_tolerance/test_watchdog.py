"""Two real ranks, of which one is slow and then hangs; what the dumps of many ranks say together."""

import json
import multiprocessing
import socket
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from pipeline.engine.ranks import Ranks
from pipeline.fault_tolerance import watchdog
from pipeline.fault_tolerance.watchdog import (
    Hang,
    HangConfig,
    Spread,
    Watchdog,
    explain,
    record_collectives,
    spread_of,
)

HOST = socket.gethostname()


def stuck() -> None:
    time.sleep(1000)


def one_of_two(rank: int, folder: str) -> None:
    """Rank 1 needs 60 ms for an update, rank 0 waits for it; in the end rank 1 does not come to the collective."""
    record_collectives(Path(folder))
    watchdog._LEAST_LOOKS = 20
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    with Watchdog(HangConfig(timeout=3), Path(folder), Ranks(rank=rank, world_size=2, device=torch.device("cpu"))) as dog:
        for update in range(60):
            dog.enter("D steps", update)
            time.sleep(0.06 * rank)
            dist.all_reduce(torch.zeros(1))
            dog.updated()
        spread = dog.spread()
        assert spread and dog.spread() is None  # nothing to go by, right after
        Path(folder, f"spread{rank}.json").write_text(json.dumps(asdict(spread)))
        dog.enter("G step", 60)
        if rank:
            stuck()
        dist.all_reduce(torch.zeros(1))


@pytest.fixture(scope="module")
def hung(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("hung")
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=one_of_two, args=(rank, str(folder)), daemon=True) for rank in (0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        assert process.exitcode == 70
    yield folder


@pytest.mark.long
def test_the_slow_rank_is_named(hung: Path) -> None:
    spreads = [Spread(**json.loads((hung / f"spread{rank}.json").read_text())) for rank in (0, 1)]
    assert spreads[0] == spreads[1]
    assert spreads[0].slowest == f"rank 1 on {HOST}" and spreads[0].ratio > watchdog.SLOW
    assert spreads[0].most > 0.05


def test_all_ranks_dump_and_the_one_that_is_missing_is_named(hung: Path) -> None:
    dumps = sorted((hung / "logs").glob("hang-rank*.txt"))
    assert [path.name[:14] for path in dumps] == ["hang-rank00000", "hang-rank00001"]
    waiting, missing = (path.read_text() for path in dumps)
    assert "distributed_c10d.py" in waiting and "in stuck" in missing and "in stuck" not in waiting
    assert "60 img  G step" in waiting and missing.count("D steps") == 60
    said = explain(dumps)
    assert said.startswith("no progress for 3 s in the G step after image 60; did not reach the collective")
    assert f"rank 1 on {HOST}" in said and "rank 0" not in said
    last = json.loads(dumps[0].with_suffix(".json").read_bytes())["entries"][-1]
    assert last["profiling_name"] == "gloo:all_reduce"


def dumped(folder: Path, *collectives: int | None) -> list[Path]:
    """Dumps of as many ranks, None for one that left none."""
    hosts, paths = [f"node{rank // 2}" for rank in range(len(collectives))], []
    for rank, begun in enumerate(collectives):
        if begun is not None:
            paths.append(folder / f"{rank}.txt")
            hang = Hang(
                rank=rank,
                hosts=hosts,
                images=4096,
                phase="D steps",
                seconds=600.3,
                collectives=begun,
                at=f"pipeline/data/loader.py:{rank} __next__",
            )
            paths[-1].write_text(json.dumps(asdict(hang)) + "\nFile ...\n")
    return paths


def test_what_dumps_say_together(tmp_path: Path) -> None:
    # Ranks 0 and 1 wait for all, 2 for its neighbour 3 alone: 3 is the cause.
    said = explain(dumped(tmp_path, 9, 9, 8, 7))
    assert said.endswith("wait in: rank 3 on node1, at pipeline/data/loader.py:3 __next__")
    assert explain(dumped(tmp_path, 9, None, 9, 9)).endswith("image 4,096; stopped, or its machine gone: rank 1 on node0")
    assert "all ranks have begun the same collectives" in explain(dumped(tmp_path, 9, 9, 9))


def test_spread() -> None:
    spread = spread_of([1.0, 1.1, 4.4, 1.2, 0.9], [f"node{rank}" for rank in range(5)])
    assert (spread.least, spread.median, spread.most, spread.slowest) == (0.9, 1.1, 4.4, "rank 2 on node2")
    assert spread.ratio == pytest.approx(4)
    assert spread_of([1.0, 2.0], ["a", "b"]).ratio == 2


def test_timeouts_are_above_nothing() -> None:
    with pytest.raises(ValueError, match="first_timeout=0"):
        HangConfig(first_timeout=0)
