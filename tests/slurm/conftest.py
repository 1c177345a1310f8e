"""What the tests on Slurm share: a training of seconds, and the same one that nobody has touched."""

from pathlib import Path

import pytest
import yaml

from tests.support.slurm import Slurm
from tests.support.slurm_runs import IMAGES, ONE_THREAD, on_one_machine
from tests.support.tiny_runs import TINY

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory, shards: Path) -> str:
    """A file with a training of 32 updates, with a checkpoint after each."""
    file = tmp_path_factory.mktemp("config") / "small.yaml"
    quick = {"processes": 1, "peak_tflops": 1, "tracking": {"mode": "offline"}, "sample_every": 0, "stop": {"grace": 30}}
    more = {"total_images": IMAGES, "checkpoint": {"every": 64}, "data": {"uri": str(shards), "flip": True}}
    file.write_text(yaml.safe_dump(TINY | quick | more))
    return str(file)


@pytest.fixture(scope="session")
def untouched(small: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of `small` with 2 processes of one machine."""
    return on_one_machine(tmp_path_factory.mktemp("untouched") / "run", small, "processes=2")


@pytest.fixture
def login(slurm: Slurm, monkeypatch: pytest.MonkeyPatch) -> Slurm:
    """Slurm, with this process on its login node."""
    for name, value in (slurm.env | ONE_THREAD).items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("BIGGAN_SITE", raising=False)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return slurm
