"""install.py: what it refuses, repairs and says. pip is the real one, offline, on wheels made here."""

import ast
import fcntl
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import install
from installing import environment
from installing.constraints import torch_in
from installing.environment import Environment, InstallError, Step

ROOT = Path(install.__file__).parent


def _wheel(folder: Path, name: str, version: str, *requires: str) -> None:
    """An empty package that pip accepts."""
    info = f"{name.replace('-', '_')}-{version}.dist-info"
    metadata = [f"Name: {name}", f"Version: {version}", *(f"Requires-Dist: {text}" for text in requires)]
    with zipfile.ZipFile(folder / f"{name.replace('-', '_')}-{version}-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\n" + "\n".join(metadata) + "\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Environment:
    """The environment of these tests, for dry runs alone: without an index, looking for wheels in tmp_path."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    environment = Environment(Path(sys.prefix))
    environment.log = tmp_path / "install.log"
    return environment


def _step() -> Step:
    return Step(1, 1, "test")


@pytest.mark.long
def test_cuda_packages_are_refused_without_a_gpu(here: Environment, tmp_path: Path) -> None:
    _wheel(tmp_path, "nvidia-cudnn-cu13", "9.19")
    _wheel(tmp_path, "cuda-bindings", "13.5")
    _wheel(tmp_path, "triton", "3.7")
    _wheel(tmp_path, "torch", "2.13.0", "nvidia-cudnn-cu13", "cuda-bindings", "triton")
    plan = here.would_install(_step(), "--ignore-installed", "torch==2.13.0")
    with pytest.raises(InstallError, match=r"3 CUDA packages.*\n.*\n.*TORCH_INDEX="):
        install.refuse_cuda(plan, gpu=False)
    install.refuse_cuda(plan, gpu=True)


@pytest.mark.long
def test_a_cpu_build_beside_the_cuda_build_is_chosen(here: Environment, tmp_path: Path) -> None:
    _wheel(tmp_path, "nvidia-cudnn-cu13", "9.19")
    _wheel(tmp_path, "torch", "2.13.0", "nvidia-cudnn-cu13")
    _wheel(tmp_path, "torch", "2.13.0+cpu")
    plan = here.would_install(_step(), "--ignore-installed", "torch==2.13.0")
    install.refuse_cuda(plan, gpu=False)
    assert [item["metadata"]["version"] for item in plan] == ["2.13.0+cpu"]


@pytest.mark.long
def test_a_cuda_build_that_brings_its_libraries_inside_is_refused(here: Environment, tmp_path: Path) -> None:
    _wheel(tmp_path, "torch", "2.13.0+cu126")
    plan = here.would_install(_step(), "--ignore-installed", "torch==2.13.0")
    with pytest.raises(InstallError, match="a CUDA build"):
        install.refuse_cuda(plan, gpu=False)


@pytest.mark.long
def test_a_torch_that_is_there_and_fits_is_kept(here: Environment) -> None:
    assert here.has("torch") and not here.has("torc")
    assert here.would_install(_step(), "--no-deps", torch_in((ROOT / "pyproject.toml").read_text())) == []


@pytest.mark.long
def test_a_failing_pip_shows_its_last_words_and_what_to_do(here: Environment) -> None:
    with pytest.raises(InstallError) as caught:
        here.pip(_step(), "--dry-run", "no-such-package-anywhere")
    text = str(caught.value)
    assert "No matching distribution" in text and "No version fits this Python" in text and "run the same command" in text
    assert len(text.splitlines()) < 16 and "no-such-package-anywhere" in here.log.read_text()


@pytest.mark.parametrize(
    ("said", "advised"),
    [
        ("ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device", "disk is full"),
        (
            "WARNING: Retrying after connection broken by 'NewConnectionError'\nERROR: No matching distribution",
            "network",
        ),
        ("ERROR: something that nobody foresaw", "run the same command again"),
    ],
)
def test_advice(said: str, advised: str) -> None:
    assert advised in environment.advice(said)


def test_only_what_our_pip_left_half_installed_is_forgotten(tmp_path: Path) -> None:
    site = tmp_path / "lib" / "python3.11" / "site-packages"
    for name, installer in (("torch-2.13.0", None), ("scipy-1.0", "pip"), ("numpy-2.4.6", "pip"), ("dnf_plugin-4.0", "rpm")):
        (site / f"{name}.dist-info").mkdir(parents=True)
        (site / f"{name}.dist-info" / "METADATA").write_text("Name: x")
        if installer:
            (site / f"{name}.dist-info" / "INSTALLER").write_text(f"{installer}\n")
    (site / "numpy-2.4.6.dist-info" / "RECORD").write_text("")
    assert environment.remove_half_installed(tmp_path) == []  # nothing says that we have ever installed there
    (tmp_path / "install.log").touch()
    assert sorted(environment.remove_half_installed(tmp_path)) == ["scipy", "torch"]
    assert sorted(path.name for path in site.iterdir()) == ["dnf_plugin-4.0.dist-info", "numpy-2.4.6.dist-info"]


@pytest.mark.parametrize(("prints", "code", "gpu"), [("GPU 0: NVIDIA H100", 0, True), ("No devices", 0, False), ("", 9, False)])
def test_a_gpu_is_what_the_driver_lists(
    prints: str, code: int, gpu: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\necho '{prints}'\nexit {code}\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    assert install.has_gpu() is gpu


def test_both_files_name_the_same_torch() -> None:
    tested = torch_in((ROOT / "constraints.txt").read_text())
    assert tested == "torch==2.13.0"
    assert torch_in((ROOT / "pyproject.toml").read_text()) == "torch>=2.11,<2.14"


def test_debian_without_venv_is_told_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ensurepip", None)
    with pytest.raises(InstallError, match=r"apt-get install python3\.\d+-venv"):
        Environment(tmp_path).create()


def test_a_folder_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(InstallError, match="no virtual environment"):
        Environment(tmp_path).create()
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_an_old_python_gets_one_line() -> None:
    source = (ROOT / "install.py").read_text()
    ast.parse(source, feature_version=(3, 7))  # so that an old Python reaches the check instead of a SyntaxError
    program = f"import sys; sys.version_info = (3, 10, 0); exec({source!r})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "Python 3.10 is too old" in done.stderr


def _stamped_copy(folder: Path) -> list[str]:
    """A copy of the repository's files for installing, whose .venv says that everything is installed already."""
    for name in ("install.py", "pyproject.toml", "constraints.txt"):
        (folder / name).write_bytes((ROOT / name).read_bytes())
    shutil.copytree(ROOT / "installing", folder / "installing")
    (folder / ".venv" / "bin").mkdir(parents=True)
    # Were it ever run, it would fail: these tests must not install.
    (folder / ".venv" / "bin" / "python").symlink_to("/bin/false")
    stamp = "import json, install; print(json.dumps({'key': install.key(install.HERE / '.venv'), 'extras': ['dev']}))"
    written = subprocess.run([sys.executable, "-c", stamp], cwd=folder, capture_output=True, text=True, check=True)
    (folder / ".venv" / "installed.json").write_text(written.stdout)
    return [sys.executable, str(folder / "install.py")]


@pytest.fixture
def plain_environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "VENV"}


def test_nothing_is_done_twice(tmp_path: Path, plain_environment: dict[str, str]) -> None:
    command = _stamped_copy(tmp_path)
    for extra in ([], ["--extra", "dev"]):
        again = subprocess.run([*command, *extra], capture_output=True, text=True, env=plain_environment, check=False)
        assert (again.returncode, again.stdout, again.stderr) == (0, "", "")


@pytest.mark.long
def test_a_changed_lock_is_installed(tmp_path: Path, plain_environment: dict[str, str]) -> None:
    command = _stamped_copy(tmp_path)
    with (tmp_path / "constraints.txt").open("a") as file:
        file.write("no-such-package==4.70.0\n")
    again = subprocess.run(command, capture_output=True, text=True, env=plain_environment, check=False)
    assert again.returncode == 1 and "[1/5]" in again.stdout
    assert not (tmp_path / ".venv" / "installed.json").exists()


@pytest.mark.long
def test_a_second_make_waits_for_the_first(tmp_path: Path, plain_environment: dict[str, str]) -> None:
    command = _stamped_copy(tmp_path)
    held = os.open(tmp_path / ".venv", os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    with subprocess.Popen(command, env=plain_environment) as second:
        with pytest.raises(subprocess.TimeoutExpired):
            second.wait(timeout=1)
        os.close(held)
        assert second.wait(timeout=30) == 0
