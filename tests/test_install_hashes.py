"""install.py holds pip to the hashes of constraints.txt. pip is the real one, offline, on wheels made here."""

import hashlib
import os
import sys
import zipfile
from pathlib import Path

import pytest

import install
from installing.constraints import Constraints
from installing.environment import Environment, InstallError, Step

ROOT = Path(install.__file__).parent
NOTHING = "torch==9.0\n"


def wheel(folder: Path, name: str, version: str, *requires: str, content: str = "") -> str:
    """An empty package that pip accepts; its line of constraints.txt."""
    folder.mkdir(exist_ok=True)
    info, path = f"{name}-{version}.dist-info", folder / f"{name}-{version}-py3-none-any.whl"
    metadata = [
        "Metadata-Version: 2.1",
        f"Name: {name}",
        f"Version: {version}",
        *(f"Requires-Dist: {text}" for text in requires),
    ]
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(f"{name}.py", content)
        file.writestr(f"{info}/METADATA", "\n".join(metadata) + "\n")
        file.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        file.writestr(f"{info}/RECORD", "")
    return f"{name}=={version} \\\n    --hash=sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}\n"


@pytest.fixture
def env(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Environment:
    """An empty environment whose pip, that of the tests, has no index but the wheels in tmp_path/index."""
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    monkeypatch.delenv("TORCH_INDEX", raising=False)
    environment = Environment(tmp_path / "env")
    environment.root.mkdir()
    environment.python = Path(sys.executable)
    monkeypatch.setenv("PIP_TARGET", str(environment.root / "site"))
    return environment


def installed(env: Environment) -> set[str]:
    return {path.name.partition(".dist-info")[0] for path in env.root.glob("site/*.dist-info")}


def step() -> Step:
    return Step(1, 1, "test")


@pytest.mark.long
def test_every_file_is_held_to_its_hash_also_of_what_others_need(env: Environment, tmp_path: Path) -> None:
    index = tmp_path / "index"
    lock = Constraints(NOTHING + wheel(index, "needed", "1.0") + wheel(index, "asked", "1.0", "needed"))
    wheel(index, "needed", "2.0")  # newer, and not what was tested
    assert env.install_all(step(), ["asked"], lock) == []
    assert installed(env) == {"asked-1.0", "needed-1.0"}


@pytest.mark.long
def test_a_file_that_was_swapped_is_refused_and_nothing_is_installed(env: Environment, tmp_path: Path) -> None:
    text = NOTHING + wheel(tmp_path / "index", "needed", "1.0") + wheel(tmp_path / "index", "asked", "1.0", "needed")
    wheel(tmp_path / "index", "needed", "1.0", content="print('not the one that was tested')")
    with pytest.raises(InstallError, match=r"not the one that was tested.*HASHES=off"):
        env.install_all(step(), ["asked"], Constraints(text))
    assert installed(env) == set()
    assert env.install_all(step(), ["asked"], Constraints(text, hashed=False)) == []  # what HASHES=off is for
    assert installed(env) == {"asked-1.0", "needed-1.0"}


@pytest.mark.long
def test_what_constraints_do_not_name_is_named_and_the_rest_held(env: Environment, tmp_path: Path) -> None:
    asked = wheel(tmp_path / "index", "asked", "1.0", "backport")
    wheel(tmp_path / "index", "backport", "3.0")
    assert env.install_all(step(), ["asked"], Constraints(NOTHING + asked)) == ["backport"]
    assert installed(env) == {"asked-1.0", "backport-3.0"}
    wheel(tmp_path / "index", "asked", "1.0", "backport", content="swapped")
    with pytest.raises(InstallError, match="not the one that was tested"):
        env.install_all(step(), ["asked", "--upgrade"], Constraints(NOTHING + asked))


@pytest.mark.long
def test_only_torch_comes_from_its_index(env: Environment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = Constraints(NOTHING + wheel(tmp_path / "index", "numpy", "1.0"))
    wheel(tmp_path / "wheels", "torch", "9.0+cpu", "numpy")
    wheel(tmp_path / "wheels", "numpy", "1.0", content="not the one that was tested")
    monkeypatch.setenv("TORCH_INDEX", str(tmp_path / "wheels"))
    (torch, numpy), where = install.torch_plan(env, step(), lock)
    assert (torch["metadata"]["version"], numpy["metadata"]["version"]) == ("9.0+cpu", "1.0")
    assert str(tmp_path / "index") in numpy["download_info"]["url"]
    assert env.install_plan(step(), [torch], lock, *where) == ["torch"]
    assert env.install_plan(step(), [numpy], lock) == []


def test_constraints_have_a_hash_of_every_version_that_they_name() -> None:
    lock = Constraints((ROOT / "constraints.txt").read_text())
    assert len(lock.pins) > 150 and all(lock.hashes(*pin.split("==")) for pin, *_ in lock.pins)
    assert lock.requirement("pip").startswith("pip==") and "--hash=sha256:" in lock.requirement("pip")
