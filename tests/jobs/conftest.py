"""What the tests of commands share: a small configuration, and a run in MLflow's registry."""

import os
import pickle
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import yaml

from jobs.cli import main
from pipeline.evaluation import classifier
from pipeline.evaluation.classifier import Recipe
from pipeline.generation.load import load_generator
from pipeline.registry import versions
from pipeline.runs.run_folder import RunState, read_identity, read_status
from pipeline.storage import trusted_stores
from pipeline.tracking.delivery import Delivery
from tests.support import background
from tests.support.once import once
from tests.support.patterns import write_tree
from tests.support.saved_run import save_checkpoint, save_run, short_standing_statistics
from tests.support.strangers import CANARY, Stranger
from tests.support.tiny_runs import TINY, Resumed, log, mlflow_runs, train, train_forked


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Little standing statistics, and MLflow's process-wide store as it was."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    short_standing_statistics(monkeypatch)
    yield
    import mlflow

    mlflow.set_tracking_uri(None)
    mlflow.set_registry_uri(None)


@pytest.fixture(scope="session")
def registered_run(tmp_path_factory: pytest.TempPathFactory, shards_grey: Path, empty_store: Path) -> Path:
    """The folder of a finished run of grey images, registered as models:/tiny@first. Read only."""

    def make(folder: Path) -> None:
        save_run(folder / "run", shards_grey, store=empty_store)
        with pytest.MonkeyPatch.context() as patch:
            short_standing_statistics(patch)
            versions.register(Delivery(folder / "run"), load_generator(folder / "run"), "tiny", "first")

    return once(tmp_path_factory, "registered", make) / "run"


@pytest.fixture
def short_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two dozen steps are enough for these patterns, and few standing statistics for noise."""
    short_standing_statistics(monkeypatch)
    recipe = Recipe(epochs=1, min_steps=24, batch=32)
    monkeypatch.setattr(classifier, "obtain_judge", partial(classifier.obtain_judge, recipe=recipe))


@pytest.fixture(scope="session")
def splits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Grey shards, `train` and `test`, of 4 classes."""

    def make(folder: Path) -> None:
        for split, images in (("train", 64), ("test", 16)):
            tree = write_tree(folder / "trees" / split, images, grey=True)
            assert main(["shard", str(tree), str(folder / split), "--resolution", "32"]) == 0

    return once(tmp_path_factory, "splits", make)


@pytest.fixture
def run_folder(tmp_path: Path, splits: Path) -> Path:
    """A run of grey images with checkpoints at 4,096 and 8,192 images, which no training has touched."""
    config = save_run(tmp_path / "run", splits / "train", mode="off")
    save_checkpoint(config, 8192)
    return tmp_path / "run"


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory, shards: Path) -> str:
    """A file with the configuration TINY."""
    file = tmp_path_factory.mktemp("config") / "tiny.yaml"
    file.write_text(yaml.safe_dump(TINY | {"data": {"uri": str(shards), "flip": True}}))
    return str(file)


def other_programs(folder: Path) -> dict[str, str]:
    """Files of a user's own program in `folder`, with our packages' names among them, and the variables that it has left."""
    for name in ("model.py", "random.py", "jobs/__init__.py", "pipeline/__init__.py"):
        file = folder / name
        file.parent.mkdir(exist_ok=True)
        file.write_text("raise SystemExit('a program of the user was imported')")
    home = folder / "huggingface"
    (home / "accelerate").mkdir(parents=True)
    defaults = "compute_environment: LOCAL_MACHINE\ndistributed_type: MULTI_GPU\nkey_of_another_version: 1\n"
    (home / "accelerate" / "default_config.yaml").write_text(defaults)
    return {"HF_HOME": str(home), "LOCAL_RANK": "0", "ACCELERATE_USE_FSDP": "true", "MASTER_ADDR": "192.0.2.1"}


@pytest.fixture(scope="session")
def resumed(tmp_path_factory: pytest.TempPathFactory, tiny: str) -> Resumed:
    folder = once(tmp_path_factory, "resumed", lambda folder: _resume(folder, tiny))
    return Resumed(folder / "run", *pickle.loads((folder / "said").read_bytes()))


def _resume(folder: Path, tiny: str) -> None:
    run = folder / "run"
    first = train(tiny, run, "total_images=128", **other_programs(folder))
    assert first.returncode == 0, first.stderr + log(run)
    assert read_status(run / "status.json") == RunState("finished", 128, 0)
    assert sorted(os.listdir(run / "checkpoints")) == ["0000000064-0001", "0000000128-0001", "fence-0000000001.json"]
    uid, mlflow_id = read_identity(run)["uid"], mlflow_runs(run)[0].info.run_id
    damaged = run / "checkpoints" / "0000000128-0001" / "ema.rank00000.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-4] + b"\0\0\0\1")
    second = train(tiny, run)
    assert second.returncode == 0, second.stderr + log(run)
    (folder / "said").write_bytes(pickle.dumps((first, second, uid, mlflow_id)))


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory, tiny: str) -> Path:
    """The same run in one go, which nobody interrupts. Read only."""
    return once(tmp_path_factory, "whole", lambda folder: train_forked(tiny, folder / "run", "tracking.mode=off")) / "run"


@pytest.fixture(scope="session")
def endless(tmp_path_factory: pytest.TempPathFactory, shards: Path) -> str:
    """A file with a run that nobody waits for, with no checkpoint but that of a stop."""
    file = tmp_path_factory.mktemp("config") / "endless.yaml"
    rare = {"total_images": 10**8, "checkpoint": {"every": 10**8}, "sample_every": 0, "log_every": 64}
    file.write_text(yaml.safe_dump(TINY | rare | {"data": {"uri": str(shards)}}))
    return str(file)


@pytest.fixture
def stranger(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Stranger]:
    """With credentials in the environment, and a user who has named nothing so far."""
    found = Stranger()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr(trusted_stores, "_here", set())
    for name, value in {
        "AWS_ENDPOINT_URL": found.uri,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": CANARY,
        "AWS_REGION": "us-east-1",
        "MLFLOW_TRACKING_TOKEN": CANARY,
        "NO_PROXY": "127.0.0.1",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    yield found
    found.server.shutdown()
    found.server.server_close()


@pytest.fixture(scope="session")
def sent(tmp_path_factory: pytest.TempPathFactory, shards_grey: Path, empty_store: Path) -> Path:
    """A run with its shards beside it. Read only."""
    folder = tmp_path_factory.mktemp("sent")
    shutil.copytree(shards_grey, folder / "shards")
    save_run(folder / "run", folder / "shards", store=empty_store)
    return folder


@pytest.fixture
def place(tmp_path: Path, sent: Path) -> Path:
    """A copy of it in a folder of the user's, who has a private file beside it."""
    folder = tmp_path / "inbox"
    shutil.copytree(sent, folder)
    config = yaml.safe_load((folder / "run" / "config.yaml").read_text())
    config["run"], config["data"]["uri"] = str(folder / "run"), str(folder / "shards")
    (folder / "run" / "config.yaml").write_text(yaml.safe_dump(config))
    (tmp_path / "private").write_text(CANARY)
    return folder


@pytest.fixture
def nothing_is_left() -> Iterator[None]:
    """Workers die with their launcher, and that with `biggan train`."""
    yield
    while background.STARTED:
        background.STARTED[-1].kill()
        background.STARTED.pop().wait()
