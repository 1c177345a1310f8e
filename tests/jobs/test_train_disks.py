"""RUN's disk fails while a run trains whose checkpoints are elsewhere: full, read-only, a file in its place, gone."""

import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jobs import cli
from pipeline.checkpoint import format
from pipeline.checkpoint.failpoints import NaNInjection
from pipeline.checkpoint.format import Progress
from pipeline.training import loop
from tests.support.background import biggan
from tests.support.ranks import run_ranks
from tests.support.tiny_runs import disk, fill

pytestmark = pytest.mark.usefixtures("nothing_is_left")


def read_only(run: Path) -> None:
    for options in (["--bind", run, run], ["-o", "remount,ro,bind", run]):
        subprocess.run(["mount", *options], check=True)


def full(run: Path) -> None:
    subprocess.run(["umount", run], check=True)
    fill(run)


def a_file(run: Path) -> None:
    run.rename(run.with_name("moved"))
    run.touch()


def gone(run: Path) -> None:
    run.unlink()


STAGES: dict[int, Callable[[Path], None]] = {64: read_only, 192: full, 320: a_file, 512: gone}
STRIKES = {1, 3, 5, 6, 8}
"""Updates with NaN: one in each stage, and in the third two in a row, after which the run goes back."""


def _spoilt(config: str, overrides: list[str], run: Path) -> None:
    """A worker that trains while `STAGES` happen to its run's folder."""
    update, stages, strikes = loop._update, dict(STAGES), set(STRIKES)

    def spoiling(*args: Any) -> Progress:
        progress = update(*args)
        if stage := stages.pop(progress.images, None):
            stage(run)
        return progress

    def struck(self: NaNInjection, step: int) -> bool:
        hit = step in strikes
        strikes.discard(step)
        return hit

    loop._update, NaNInjection._strikes = spoiling, struck  # type: ignore[method-assign]
    sys.exit(cli.main(["train", config, "--profile", "1", *overrides]))


def damaged(shards: Path, folder: Path) -> Path:
    """A copy in which every few samples one has another byte."""
    shutil.copytree(shards, folder)
    for tar in folder.glob("*.tar"):
        data = bytearray(tar.read_bytes())
        for place in range(1300, len(data), 16_000):
            data[place] ^= 1
        tar.write_bytes(data)
    return folder


@pytest.mark.slow
def test_what_happens_to_the_runs_folder_does_not_end_a_training(tiny: str, shards: Path, tmp_path: Path) -> None:
    said, store = tmp_path / "log", tmp_path / "store"
    with disk(tmp_path / "disk", "8m") as place:
        run = place / "run"
        overrides = [f"run={run}", f"checkpoint.uri={store}", f"data.uri={damaged(shards, tmp_path / 'damaged')}"]
        overrides += [
            "data.bad_fraction=0.9",
            "batch.norm_group=8",
            "health.max_skips=1",
            "sample_every=320",
            "total_images=640",
            "data.read_ahead=1",
        ]
        run_ranks(
            _spoilt,
            tiny,
            [*overrides, "tracking.mode=offline", "tracking.system_seconds=0"],
            run,
            ranks=1,
            log=said,
            BIGGAN_STATUS=str(tmp_path / "told"),
            BIGGAN_INJECT_NAN="0:0",  # at the updates that `_spoilt` has
        )
    text = said.read_text()
    found = format.newest(str(store))
    assert found and found.images == 640 and found.progress().rollbacks == 1
    kept = re.findall(r"^biggan: warning: (\S+) is not kept \((.*)\): training goes on without it$", text, re.M)
    names = [Path(path).name for path, _ in kept]
    assert len(set(names)) == len(names), kept  # said once
    assert "the trace is" not in text
    files = {"status.json", "saved.json", "events.jsonl", "journal.jsonl", "quarantine.jsonl", "health.json"}
    assert files | {"rank00000.json.gz"} <= set(names), kept
    assert "Traceback" not in text


@pytest.mark.slow
def test_a_signal_saves_a_run_whose_folder_is_gone(endless: str, tmp_path: Path) -> None:
    run, store, scratch = tmp_path / "run", tmp_path / "store", tmp_path / "scratch"
    scratch.mkdir()
    started = biggan(endless, run, f"checkpoint.uri={store}", prefix=["env", f"TMPDIR={scratch}"])
    started.until("img/s")
    run.rename(tmp_path / "moved")
    run.touch()
    started.process.send_signal(signal.SIGTERM)
    assert started.end() == 75, started.err.read_text()
    assert re.search(
        r"^stopped by SIGTERM at image [\d,]+ of 100,000,000: the same command goes on there$", started.out.read_text(), re.M
    )
    assert format.newest(str(store)) and "Traceback" not in started.err.read_text()
    assert not list(scratch.glob("biggan-*"))


@pytest.mark.slow
def test_a_folder_called_stop_stops_and_is_named_to_the_next_start(endless: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    started = biggan(endless, run)
    started.until("img/s")
    (run / "STOP").mkdir()
    assert started.end() == 75
    where = f"{run}/STOP, a folder,"
    assert f"the same command goes on there after you have moved {where} away" in started.out.read_text()
    again = biggan(endless, run)
    assert again.end() == 78 and where in again.err.read_text()
    assert (run / "STOP").is_dir() and format.newest(str(run / "checkpoints"))
