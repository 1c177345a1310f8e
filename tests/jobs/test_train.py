"""`biggan train` as a user types it: whole runs on two processes."""

import fcntl
import gzip
import hashlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from jobs.cli import main
from pipeline import storage
from pipeline.checkpoint import format
from pipeline.config import load_config, to_yaml
from pipeline.profiling.costs import checkpoint_bytes, network_sizes
from pipeline.runs.run_folder import RunState, read_identity, read_status, write_status
from pipeline.storage import run_lock
from pipeline.tracking.mlflow_store import connect, store_uri
from tests.support import background
from tests.support.servers import S3Server
from tests.support.tiny_runs import Resumed, assert_one_line, disk, log, mlflow_runs, remount, tensors_of, train, train_forked

LINE = re.compile(
    r"^ +(?P<images>[\d,]+) img +[\d.]+ img/s +MFU +\d+% +data +\d+% +comm +\d+%"
    r" +D +[\d.]+ +G +-?[\d.]+ +D\(real\) +-?[\d.]+ +D\(fake\) +-?[\d.]+"
    r" +\|grad D\| +[\d.]+ +\|grad G\| +[\d.]+ +left [\d.]+ min$",
    re.M,
)


@pytest.mark.long
def test_progress_is_told(resumed: Resumed) -> None:
    assert [match["images"] for match in LINE.finditer(resumed.first.stdout)] == ["64", "128"]
    assert [match["images"] for match in LINE.finditer(resumed.second.stdout)] == ["128", "192", "256"]
    assert "training from image 0 of 128: global batch 32 = 2 ranks x 2 micro-batches of 8" in resumed.first.stdout
    assert "changed since the last start: total_images: 128 -> 256" in resumed.second.stdout
    assert resumed.second.stderr == ""


def test_the_phases_of_a_run_add_up_to_its_wall_clock(resumed: Resumed) -> None:
    records = [json.loads(line) for line in (resumed.run / "journal.jsonl").read_text().splitlines()]
    rows = [record["metrics"] for record in records if "images_per_second" in record.get("metrics", ())]
    assert len(rows) == 4  # what the resumed run reports again at 128 is there already
    for row in rows:
        seconds = {key: value for key, value in row.items() if re.fullmatch(r"time/\w+", key)}
        assert {"time/data", "time/d_step", "time/g_step", "time/ema", "time/communication", "time/logging"} <= set(seconds)
        assert sum(seconds.values()) == pytest.approx(64 / row["images_per_second"], rel=0.01)
        assert sum(row[key.replace("time/", "time/share/")] for key in seconds) == pytest.approx(1)
        assert 0 < row["mfu"] < 1 and row["images_per_second_per_device"] == row["images_per_second"] / 2
        assert 0.1 < row["memory/peak_gb"] < 100
    # The first run's samples and checkpoints came after its reports at 128 and 64: all but the last of each is in a row.
    assert sum("time/checkpoint" in row for row in rows) == 3
    told = re.search(r"128 images in (\d+) s: (.*)", resumed.first.stdout)
    assert told
    seconds = [float(part.split()[1]) for part in told[2].split(", ")]
    assert sum(seconds) == pytest.approx(int(told[1]), abs=0.5 + 0.05 * len(seconds))


def test_a_damaged_checkpoint_is_named_and_the_one_before_taken(resumed: Resumed) -> None:
    assert "resuming at image 64 of 256" in resumed.second.stdout
    damaged = f"{resumed.run}/checkpoints/0000000128-0001/ema.rank00000.safetensors is damaged"
    assert resumed.second.stdout.count(f"passing over a damaged checkpoint, which stays: {damaged}\n") == 1


def test_the_folder_holds_what_a_run_holds(resumed: Resumed, tiny: str) -> None:
    assert read_status(resumed.run / "status.json") == RunState("finished", 256, 0)
    kept = ["0000000128-0001", "0000000192-0002", "0000000256-0002", "fence-0000000002.json"]  # the first one is damaged
    assert sorted(os.listdir(resumed.run / "checkpoints")) == kept
    assert (resumed.run / "config.yaml").read_text() == to_yaml(load_config(tiny, [f"run={resumed.run}"]))
    newest = format.newest(str(resumed.run / "checkpoints"))
    assert newest and newest.progress() == format.Progress(256, 4)
    assert not list(resumed.run.rglob("*.tmp"))


@pytest.mark.long
def test_a_checkpoint_is_as_large_as_a_plan_says(resumed: Resumed, tiny: str) -> None:
    found, config = format.newest(str(resumed.run / "checkpoints")), load_config(tiny, [f"run={resumed.run}"])
    assert found
    names = ("generator", "generator_optimizer", "discriminator", "discriminator_optimizer", "ema")
    stored = sum(tensor.nbytes for name in names for tensor in found.tensors(name).values())
    assert stored == checkpoint_bytes(config, *network_sizes(config))


@pytest.mark.slow
def test_a_profile_is_a_trace_of_each_rank_and_a_table(tiny: str, tmp_path: Path) -> None:
    done = train(tiny, tmp_path / "run", "tracking.mode=off", "sample_every=0", "checkpoint.every=256", "--profile", "64")
    assert done.returncode == 0, done.stderr + log(tmp_path / "run")
    traces = sorted((tmp_path / "run" / "profile").iterdir())
    assert [path.name for path in traces] == ["rank00000.json.gz", "rank00001.json.gz"]
    events = json.loads(gzip.decompress(traces[1].read_bytes()))["traceEvents"]
    names = [event.get("name", "") for event in events]
    assert "aten::convolution_backward" in names and sum(name.startswith("ProfilerStep#") for name in set(names)) == 1
    assert "aten::convolution_backward" in done.stdout and "1 updates, by their own time" in done.stdout


def test_the_same_mlflow_run_goes_on_with_one_row_per_step(resumed: Resumed) -> None:
    (found,) = mlflow_runs(resumed.run)
    assert found.info.run_id == resumed.mlflow_id
    assert found.info.status == "FINISHED"
    assert read_identity(resumed.run)["uid"] == resumed.uid == found.data.tags["biggan.run_uid"]
    client = connect(store_uri(resumed.run, None))
    keys = {
        "loss/d",
        "loss/g",
        "d/real",
        "d/fake",
        "grad_norm/d",
        "grad_norm/g",
        "images_per_second",
        "mfu",
        "time/data",
        "lr/g",
    }
    assert keys <= set(found.data.metrics)
    for key in (key for key in found.data.metrics if not key.startswith("system/")):
        steps = sorted(row.step for row in client.get_metric_history(found.info.run_id, key))
        # A phase that a report has not seen, and what is looked at with a sample grid, has no row.
        assert len(steps) == len(set(steps)) and set(steps) <= {64, 128, 192, 256}, key
        assert steps == [64, 128, 192, 256] or key not in keys, key


def test_mlflow_knows_where_the_run_comes_from(resumed: Resumed, shards: Path) -> None:
    (found,) = mlflow_runs(resumed.run)
    tags = found.data.tags
    text = (resumed.run / "config.yaml").read_bytes()
    assert tags["biggan.config_sha256"] == hashlib.sha256(text).hexdigest()
    assert tags["biggan.resumed_from"] == "64" and tags["biggan.world_size"] == "2"
    assert tags["biggan.hostname"] == socket.gethostname() and tags["biggan.git_dirty"] in ("true", "false")
    (data,) = found.inputs.dataset_inputs
    assert data.dataset.digest == tags["biggan.dataset_fingerprint"] == read_identity(resumed.run)["dataset"]
    assert str(shards) in data.dataset.source
    # One process of the node samples, at least at the end of each start.
    rows = connect(store_uri(resumed.run, None)).get_metric_history(
        found.info.run_id, "system/node0/cpu_utilization_percentage"
    )
    assert len(rows) >= 2 and len({row.step for row in rows}) == len(rows)


def test_mlflow_has_parameters_configuration_and_samples(resumed: Resumed) -> None:
    (found,) = mlflow_runs(resumed.run)
    client = connect(store_uri(resumed.run, None))
    assert found.data.params["batch.global_batch"] == "32"
    assert found.data.params["total_images"] == "128"
    assert found.data.tags["biggan.changed.total_images"] == "256"
    text = Path(client.download_artifacts(found.info.run_id, "config.yaml")).read_text()
    assert text == (resumed.run / "config.yaml").read_text()
    images = [file.path for file in client.list_artifacts(found.info.run_id, "images") if file.path.endswith(".png")]
    assert sorted(int(re.findall(r"step\+(\d+)", path)[0]) for path in images) == [128, 256]


def files(run: Path) -> dict[str, tuple[str, int]]:
    """Content and time of all files."""
    found = (path for path in run.rglob("*") if path.is_file())
    return {str(path): (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns) for path in found}


def test_a_finished_or_locked_run_says_so_and_no_file_changes(
    resumed: Resumed, tiny: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = files(resumed.run)
    assert main(["train", tiny, f"run={resumed.run}", "data.flip=false"]) == 0
    assert "has finished: 256 images" in capsys.readouterr().out
    assert files(resumed.run) == before
    monkeypatch.setattr(run_lock, "check_free", partial(run_lock.check_free, patience=0))
    with open(resumed.run / "lock") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert main(["train", tiny, f"run={resumed.run}", "total_images=512", "data.flip=false"]) == 78
    assert "is being trained by process" in capsys.readouterr().err
    assert files(resumed.run) == before


@pytest.mark.slow
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(whole: Path, resumed: Resumed) -> None:
    assert tensors_of(resumed.run) == tensors_of(whole)


@pytest.mark.slow
def test_killed_after_its_last_checkpoint_a_run_still_ends(whole: Path, tiny: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    write_status(run, RunState("running", 256))
    done = train(tiny, run, "tracking.mode=off")
    assert done.returncode == 0, done.stderr + log(run)
    assert "resuming at image 256 of 256" in done.stdout
    assert read_status(run / "status.json") == RunState("finished", 256, 0)
    assert json.loads((run / "journal.jsonl").read_text().splitlines()[-1])["close"] == "FINISHED"
    assert tensors_of(run) == tensors_of(whole)


@pytest.mark.slow
def test_from_s3_as_from_disk(whole: Path, tiny: str, shards: Path, s3: S3Server, tmp_path: Path) -> None:
    for path in shards.iterdir():
        storage.write_bytes(f"{s3.uri}/train/{path.name}", path.read_bytes())
    train_forked(tiny, tmp_path / "run", f"data.uri={s3.uri}/train", "tracking.mode=off")
    assert tensors_of(tmp_path / "run") == tensors_of(whole)


@pytest.mark.slow
def test_a_shard_cut_in_half(whole: Path, tiny: str, shards: Path, tmp_path: Path) -> None:
    copy = tmp_path / "shards"
    shutil.copytree(shards, copy)
    shard = sorted(copy.glob("*.tar"))[0]
    data = shard.read_bytes()
    shard.write_bytes(data[: len(data) // 2])
    command = (tiny, tmp_path / "run", f"data.uri={copy}", "tracking.mode=off")
    done = train(*command)
    assert_one_line(done.stderr, done.returncode, 65, shard.name, f"{len(data):,}", f"`biggan index {copy} --verify` names all")
    status = read_status(tmp_path / "run" / "status.json")
    assert status and (status.state, status.exit_code) == ("failed", 65) and status.message in done.stderr
    shard.write_bytes(data)
    train_forked(*command)
    assert tensors_of(tmp_path / "run") == tensors_of(whole)


@pytest.mark.slow
def test_a_disk_that_fills_up_while_training(whole: Path, tiny: str, tmp_path: Path) -> None:
    size = sum(path.stat().st_size for path in (whole / "checkpoints" / "0000000256-0001").iterdir())
    with disk(tmp_path / "disk", f"{size * 3 // 2 // 1024 + 200}k") as folder:
        command = (tiny, folder / "run", "tracking.mode=off", "sample_every=0")
        done = train(*command)
        assert_one_line(done.stderr, done.returncode, 74, str(folder), "the disk is full", "run the same command again")
        assert storage.names(str(folder / "run" / "checkpoints")) == ["0000000064-0001", "fence-0000000001.json"]
        status = read_status(folder / "run" / "status.json")
        assert status and (status.state, status.exit_code) == ("failed", 74) and status.images >= 64
        assert "cannot save 256 images, the last checkpoint is at 64" in done.stderr
        remount(folder, f"size={size * 4 // 1024 + 1024}k")
        assert "resuming at image 64 of 256" in train_forked(*command)
        assert tensors_of(folder / "run") == tensors_of(whole)
        assert json.loads((folder / "run" / "status.json").read_text())["state"] == "finished"


def test_a_training_takes_nothing_from_other_programs_where_it_is_started(resumed: Resumed) -> None:
    """Modules with our names in that folder, Accelerate's defaults of another version, variables of another launcher."""
    ignored = "biggan: warning: LOCAL_RANK is set without RANK: it is left over from something else and ignored\n"
    assert (resumed.first.returncode, resumed.first.stderr) == (0, ignored)
    assert (resumed.run.parent / "random.py").exists() and (resumed.run.parent / "huggingface").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("nothing_is_left")
def test_a_run_without_a_terminal_under_nohup_with_variables_of_others(tiny: str, tmp_path: Path) -> None:
    """Its reader leaves, a terminal closes, and workers get variables that would end them."""
    run = tmp_path / "läufe"
    environment = {"PYTHONWARNINGS": "error", "PYTHONIOENCODING": "ascii", "OMP_NUM_THREADS": "1,1"}
    command = [sys.executable, "-m", "jobs.cli", "train", tiny, f"run={run}", "tracking.mode=off", "sample_every=0"]
    process = subprocess.Popen(
        ["nohup", *command],
        cwd=tmp_path,
        env=os.environ | environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    background.STARTED.append(process)
    assert process.stdout
    assert b"l\\xe4ufe" in process.stdout.readline()
    process.send_signal(signal.SIGHUP)
    process.stdout.close()
    assert process.wait(timeout=250) == 0, log(run)
    assert read_status(run / "status.json") == RunState("finished", 256, 0)
    assert main(["train", tiny, f"run={run}", "tracking.mode=off"]) == 0


def test_a_worker_whose_launcher_is_already_gone_leaves(tiny: str, tmp_path: Path) -> None:
    """Between its start and its request to die with the launcher, a worker can lose it: it is then another's child."""
    worker = dict.fromkeys(("LOCAL_RANK", "RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"), "0")
    environment = os.environ | worker | {"BIGGAN_TRAIN_PID": "1000000000"}
    command = [sys.executable, "-m", "jobs.cli", "train", tiny, f"run={tmp_path / 'run'}"]
    done = subprocess.run(command, env=environment, capture_output=True, timeout=60, check=False)
    assert done.returncode == 1
    assert not (tmp_path / "run").exists()
