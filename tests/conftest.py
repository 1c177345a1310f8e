"""What every test folder shares."""

import os
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from numpy.typing import NDArray
from PIL import Image

from tests.support.nodes import Nodes, require
from tests.support.refusals import REFUSALS
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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
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


PATTERNS = ("bars", "blob", "checks", "stripes")


def pattern(kind: int, rng: np.random.Generator, size: int = 32) -> NDArray[np.uint8]:
    """A noisy picture of one of the `PATTERNS`, uint8 [size, size]: a class that a small network learns at once."""
    y, x = np.mgrid[:size, :size] / size
    shift = rng.uniform(0, 0.25)
    picture = (
        np.sin(2 * np.pi * (3 * x + shift)),
        2 * np.exp(-((x - 0.5 - shift / 2) ** 2 + (y - 0.5) ** 2) / 0.05) - 1,
        np.sin(2 * np.pi * (2 * x + shift)) * np.sin(2 * np.pi * (2 * y + shift)),
        np.sin(2 * np.pi * (3 * y + shift)),
    )[kind]
    return np.clip(128 + 100 * picture + rng.normal(0, 8, (size, size)), 0, 255).astype(np.uint8)


def write_tree(root: Path, images: int, *, grey: bool, size: int = 32) -> Path:
    """A folder of 4 class folders with `images` PNG files each."""
    rng = np.random.default_rng(0)
    tints = np.array([[255, 120, 60], [80, 255, 80], [60, 120, 255], [255, 255, 80]]) / 255
    for kind, name in enumerate(PATTERNS):
        (root / name).mkdir(parents=True)
        for i in range(images):
            pixels = pattern(kind, rng, size)
            if not grey:
                pixels = (pixels[..., None] * tints[kind]).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{i:04d}.png", compress_level=1)
    return root


def _packed(folder: Path, *, grey: bool) -> Path:
    from jobs.cli import main

    tree = write_tree(folder / "tree", 64, grey=grey)
    assert main(["shard", str(tree), str(folder / "shards"), "--resolution", "32", "--shard-size", "1"]) == 0
    return folder / "shards"


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of 4 classes x 64 RGB images of 32 px, learnable. Read only: copy them before you damage them."""
    return _packed(tmp_path_factory.mktemp("rgb"), grey=False)


@pytest.fixture(scope="session")
def shards_grey(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same in grey."""
    return _packed(tmp_path_factory.mktemp("grey"), grey=True)


@dataclass(frozen=True)
class S3Server:
    """A local S3 server with one bucket."""

    env: dict[str, str]
    """Variables that lead AWS's tools and ours to it: for `monkeypatch.setenv`, or for a child process."""
    uri: str = "s3://biggan-test"
    """The bucket."""


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


def address(log: Path, server: subprocess.Popen[bytes], said: str) -> str:
    """Where a server listens, once it has said so in its log: the group of the expression `said`."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and server.poll() is None:
        if match := re.search(said, log.read_text()):
            return match[1]
        time.sleep(0.1)
    raise RuntimeError(f"the server did not start: {log.read_text()}")


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
