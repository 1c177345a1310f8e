"""Checkpoints of whole runs on two ranks: files damaged, a store that takes nothing for a while, two trainings at one place."""

import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from jobs.cli import main
from pipeline.checkpoint import format
from pipeline.engine.ranks import Ranks
from pipeline.fault_tolerance.recovery import History
from pipeline.runs.resume import agree_on_checkpoint
from pipeline.runs.run_folder import load_run_config, read_status
from tests.support.background import Started, biggan, wait_for
from tests.support.ranks import on_ranks
from tests.support.tiny_runs import disk, log, remount, train_forked

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("nothing_is_left")]


@pytest.fixture(scope="module", params=[1, 3])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tiny: str) -> Path:
    """A run with checkpoints of two ranks at 64 and 128 images."""
    run = tmp_path_factory.mktemp("trained") / "run"
    quiet = ("total_images=128", "sample_every=0", "tracking.mode=off", f"zero.stage={request.param}")
    train_forked(tiny, run, *quiet)
    return run


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def flip(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


def damage_in_turn(ranks: Ranks, run: str) -> None:
    """Whatever file of the newest checkpoint is damaged, all ranks take the one before, and read the same from it."""
    config = load_run_config(run)
    newest = Path(run, "checkpoints", "0000000128-0001")
    names = sorted(path.name for path in newest.iterdir())
    assert len(names) == 2 * 5 + 2, names  # both ranks' parts, the state and the marker
    for name in names:
        for harm in (cut, flip):
            _on_main(ranks, lambda: _rewrite(newest / name, harm))  # noqa: B023
            found = agree_on_checkpoint(config, ranks, History())
            assert found and found.images == 64, f"{name}, {harm.__name__}: {found and found.images}"
            assert all(found.tensors(part) for part in found.parts)
            _on_main(ranks, lambda: shutil.move(newest / f"{name}.whole", newest / name))  # noqa: B023
    found = agree_on_checkpoint(config, ranks, History())
    assert found and found.images == 128


def _on_main(ranks: Ranks, act: Callable[[], object]) -> None:
    torch.distributed.barrier()
    if ranks.main:
        act()
    torch.distributed.barrier()


def _rewrite(path: Path, harm: Callable[[bytes], bytes]) -> None:
    whole = path.read_bytes()
    path.with_name(f"{path.name}.whole").write_bytes(whole)
    path.write_bytes(harm(whole))


def saved(store: Path) -> int:
    """Images of the last checkpoint."""
    return max((found.images for found in format.committed(str(store))), default=0)


def test_each_file_cut_and_flipped_in_turn(trained: Path) -> None:
    on_ranks(2, damage_in_turn, str(trained))


def test_a_store_that_may_not_be_written_for_a_while(endless: str, tmp_path: Path) -> None:
    """Training goes on and says so; when the store is back, so are the checkpoints."""
    run = tmp_path / "run"
    with disk(tmp_path / "store", "64m") as store:
        place = (f"checkpoint.uri={store}", "checkpoint.every=64", "checkpoint.max_loss=100000000", "tracking.mode=off")
        started = biggan(endless, run, *place)

        wait_for(lambda: saved(store) or started.process.poll() is not None)
        remount(store, "ro")
        wait_for(lambda: "failure 4 in a row" in log(run))
        said = next(line for line in log(run).splitlines() if "failure 1 in a row" in line)
        assert str(store) in said and "images are at risk" in said
        kept = saved(store)
        remount(store, "rw")
        wait_for(lambda: saved(store) > kept or started.process.poll() is not None)
        assert main(["stop", str(run)]) == 0
        assert started.end() == 75, started.err.read_text() + log(run)
        status = read_status(run / "status.json")
        assert status and saved(store) == status.images > kept


def test_a_node_that_comes_back_cannot_save_over_its_successor(endless: str, tmp_path: Path) -> None:
    """Two hosts, which a process namespace of its own makes of this one: each with its own disk, and one store."""
    elsewhere = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]
    if subprocess.run([*elsewhere, "true"], capture_output=True, check=False).returncode:
        pytest.skip("may not make a process namespace here")
    store, first, second = tmp_path / "store", tmp_path / "first" / "run", tmp_path / "second" / "run"
    place = (f"checkpoint.uri={store}", "checkpoint.every=64", "tracking.mode=off", "hang.timeout=100")
    first.parent.mkdir()
    lost = biggan(endless, first, *place)
    wait_for(lambda: saved(store) or lost.process.poll() is not None)
    second.mkdir(parents=True)
    shutil.copy(first / "run.json", second)

    def start() -> Started:
        started = biggan(endless, second, *place, prefix=elsewhere)
        wait_for(lambda: "resuming at image" in started.out.read_text() or started.process.poll() is not None)
        return started

    refused = start()
    assert refused.end() == 78
    assert f"checkpoint.uri={store}: process" in refused.err.read_text() and "is training there" in refused.err.read_text()

    everyone = descendants(lost.process.pid)
    for pid in everyone:
        os.kill(pid, signal.SIGSTOP)
    kept = saved(store)
    successor = start()
    assert f"resuming at image {kept:,} of" in successor.out.read_text(), successor.err.read_text()
    for pid in everyone:
        os.kill(pid, signal.SIGCONT)
    assert lost.end() == 78
    assert "another training started there after this one" in lost.err.read_text()
    assert main(["stop", str(second)]) == 0
    assert successor.end() == 75, successor.err.read_text()
    found = {one.uri[-4:]: one.images for one in format.committed(str(store))}
    assert found["0002"] > kept and found.get("0001", 0) <= kept


def descendants(pid: int) -> list[int]:
    """`pid` and all below it, parents first."""
    below = [int(c) for task in Path(f"/proc/{pid}/task").iterdir() for c in (task / "children").read_text().split()]
    return [pid, *(found for child in below for found in descendants(child))]
