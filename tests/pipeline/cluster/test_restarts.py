"""What becomes of a job that has ended."""

import json
import shutil
from pathlib import Path

import pytest

from pipeline.cluster.restarts import Crashes, Verdict, after, decide, main, stamp
from pipeline.runs.run_folder import RunState, write_status
from tests.support.saved_run import save_checkpoint, save_run
from tests.support.servers import S3Server


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory, shards_grey: Path) -> Path:
    """A run with a checkpoint at 4,096 images. Read only."""
    folder = tmp_path_factory.mktemp("saved") / "run"
    save_run(folder, shards_grey, mode="off")
    return folder


@pytest.mark.parametrize("code", [0, 65, 78, 79, 80])
def test_what_another_start_does_not_mend(code: int) -> None:
    assert decide(code, "", Crashes(), 3).again is False


def test_a_stop_is_gone_on_from_unless_a_person_has_asked() -> None:
    for reason in ("SIGUSR1", "SIGTERM", "stop.max_time", "the cloud's notice", ""):
        assert decide(75, reason, Crashes(100, 3), 3).again
        assert not decide(75, reason, Crashes(100, 4), 3).again
    assert not decide(75, "RUN/STOP", Crashes(), 3).again


def test_crashes_count_until_there_is_a_new_checkpoint() -> None:
    first = Crashes().again(0)
    assert [first, first.again(0), first.again(0).again(64)] == [Crashes(0, 1), Crashes(0, 2), Crashes(64, 1)]
    assert decide(1, "", Crashes(0, 3), 3).again and not decide(1, "", Crashes(0, 4), 3).again
    assert not decide(137, "", Crashes(0, 1), 0).again


def test_stops_count_where_they_gain_nothing() -> None:
    idle = Crashes().stopped(0)
    assert [idle, idle.stopped(0), idle.again(0)] == [Crashes(0, 1), Crashes(0, 2), Crashes(0, 2)]
    assert [idle.stopped(64), Crashes().stopped(64), Crashes(64, 2).stopped(64)] == [
        *(Crashes(64, 0), Crashes(64, 0), Crashes(64, 3))
    ]


def test_a_run_has_its_crashes_back_after_a_checkpoint(saved: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(saved, run)
    (run / "config.yaml").write_text((run / "config.yaml").read_text().replace(str(saved), str(run)))
    nothing = stamp(run)
    assert [after(run, 1, nothing, 2).again for _ in range(3)] == [True, True, False]
    assert json.loads((run / "restarts.json").read_text()) == {"images": 4096, "count": 3}
    from pipeline.runs.run_folder import load_run_config

    save_checkpoint(load_run_config(run), 8192)
    assert after(run, 1, nothing, 2).again
    assert json.loads((run / "restarts.json").read_text()) == {"images": 8192, "count": 1}
    assert after(run, 75, nothing, 2).why == "stopped by a signal, start 2 of at most 2 without a checkpoint past 8,192 images"
    assert after(run, 75, nothing, 2) == Verdict(
        False, 75, "stopped by a signal: 3 starts without a checkpoint past 8,192 images; give a start more time"
    )
    save_checkpoint(load_run_config(run), 16384)
    assert after(run, 75, nothing, 2) == Verdict(True, 75, "stopped by a signal")
    assert json.loads((run / "restarts.json").read_text()) == {"images": 16384, "count": 0}


def test_checkpoints_may_be_in_a_bucket(shards_grey: Path, s3: S3Server, tmp_path: Path) -> None:
    config = save_run(tmp_path / "run", shards_grey, mode="off")
    text = (tmp_path / "run" / "config.yaml").read_text()
    (tmp_path / "run" / "config.yaml").write_text(text.replace("  uri: null\n", f"  uri: {s3.uri}/restarts\n", 1))
    from pipeline.runs.run_folder import load_run_config

    moved = load_run_config(tmp_path / "run")
    assert moved.checkpoint.uri == f"{s3.uri}/restarts" and config.checkpoint.uri is None
    save_checkpoint(moved, 2048)
    assert after(tmp_path / "run", 1, "", 3).why == "crash 1 of at most 3 without a checkpoint past 2,048 images"


def test_the_status_of_this_start_has_the_word(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_status(tmp_path, RunState("stopped", 64, 75, "SIGUSR1"))
    before = stamp(tmp_path)
    assert after(tmp_path, 1, before, 0).code == 1  # of an earlier start
    assert after(tmp_path, 137, "", 0).code == 75
    write_status(tmp_path, RunState("failed", 64, 78, "no such data"))
    assert main([str(tmp_path), "137", "--before", before]) == 0
    assert capsys.readouterr().out == "end 78 exit code 78 is not mended by another start\n"


def test_a_crash_before_there_is_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path), "1", "--crashes", "1"]) == main([str(tmp_path), "1", "--crashes", "1"]) == 0
    assert [line.split()[:2] for line in capsys.readouterr().out.splitlines()] == [["again", "1"], ["end", "1"]]
