"""What every test folder shares."""

import os
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from tests.support.nodes import Nodes, require
from tests.support.once import once
from tests.support.patterns import write_tree
from tests.support.refusals import REFUSALS
from tests.support.servers import S3Server, address
from tests.support.slurm import Slurm, install, running

settings.register_profile("unhurried", deadline=None)  # how long an example takes depends on what else the machine does
settings.load_profile("unhurried")


REFUSALS.watch()
# Which stores this session's tests have named (`pipeline.storage.trusted_stores`) is nobody else's business, nor the user's
# theirs.
os.environ["XDG_STATE_HOME"] = tempfile.mkdtemp(prefix="biggan-tests-state-")


@pytest.fixture(autouse=True)
def advice_is_taken() -> Iterator[None]:
    """What any refusal of a test says to type has to be something that the program knows."""
    yield
    assert not (faults := REFUSALS.faults()), "\n".join(faults)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    terminalreporter.write_line(REFUSALS.summary())


@pytest.hookimpl(optionalhook=True)  # without pytest-xdist there is nothing to schedule
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Keep the tests of a file on one worker, and all tests on Slurm: they share a cluster. Those come first."""
    from xdist.scheduler import LoadFileScheduling

    class Together(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return "tests/slurm" if nodeid.startswith("tests/slurm/") else super()._split_scope(nodeid)

    return Together(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.get_closest_marker("slurm") is None)
    gpu = [item for item in items if item.get_closest_marker("gpu")]
    if not gpu:
        return
    import torch  # 2 seconds, only where it decides something

    if not torch.cuda.is_available():
        for item in gpu:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Work this small only waits for a second one."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def _pack(folder: Path, *, grey: bool) -> None:
    from jobs.cli import main

    tree = write_tree(folder / "tree", 64, grey=grey)
    assert main(["shard", str(tree), str(folder / "shards"), "--resolution", "32", "--shard-size", "1"]) == 0


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of 4 classes x 64 RGB images of 32 px, learnable. Read only: copy them before you damage them."""
    return once(tmp_path_factory, "rgb", partial(_pack, grey=False)) / "shards"


@pytest.fixture(scope="session")
def shards_grey(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same in grey."""
    return once(tmp_path_factory, "grey", partial(_pack, grey=True)) / "shards"


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sqlite store with its tables. Making one takes MLflow seconds of waiting for the disk, copying one does not."""
    from pipeline.tracking.mlflow_store import connect

    return once(tmp_path_factory, "store", lambda folder: connect(f"sqlite:///{folder / 'mlflow.db'}")) / "mlflow.db"


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A real S3 server process (moto), on a free port."""
    log = tmp_path_factory.mktemp("s3") / "log"
    with open(log, "wb") as output:
        server = subprocess.Popen(
            [sys.executable, "-c", "from moto.server import main; main()", "-p", "0"], stdout=output, stderr=output
        )
    try:
        endpoint = address(log, server, r"Running on (http://127\.0\.0\.1:\d+)")
        bucket = urllib.request.Request(f"{endpoint}/biggan-test", method="PUT")
        urllib.request.build_opener(urllib.request.ProxyHandler({})).open(bucket, timeout=30).close()
        yield S3Server(
            {
                "AWS_ENDPOINT_URL": endpoint,
                "AWS_ACCESS_KEY_ID": "test",
                "AWS_SECRET_ACCESS_KEY": "test",
                "AWS_REGION": "us-east-1",
                "NO_PROXY": "127.0.0.1",
            }
        )
    finally:
        server.terminate()
        server.wait(timeout=30)


@pytest.fixture
def s3(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    """The S3 server, with this process's environment pointing at it."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in s3_server.env.items():
        monkeypatch.setenv(name, value)
    return s3_server


@pytest.fixture(scope="session")
def slurm_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    """A Slurm of three machines, n1 to n3, for the whole session. Tests take `slurm`."""
    require()
    install()
    folder = tmp_path_factory.mktemp("slurm")
    with Nodes(folder, ["n1", "n2", "n3"]) as nodes, running(folder, nodes) as slurm:
        yield slurm


@pytest.fixture
def slurm(slurm_cluster: Slurm) -> Iterator[Slurm]:
    """The same with all machines idle and nothing queued: what an earlier test left is cancelled."""
    slurm_cluster.settle()
    yield slurm_cluster
    slurm_cluster.settle()
