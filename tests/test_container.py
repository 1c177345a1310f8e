"""The image's recipes, without an engine to build them: a linter, and their own steps in an empty folder."""

import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from jobs.dockerfile import BASE, guarded
from pipeline.errors import StorageError

ROOT = Path(__file__).parent.parent
DOCKERFILE, APPTAINER = ROOT / "container" / "Dockerfile", ROOT / "container" / "biggan.def"
INSTALL = "container/install.sh /opt/biggan"


def copied() -> list[str]:
    """What the first stage copies."""
    first = DOCKERFILE.read_text().partition("\nFROM python")[2].partition("\nFROM ")[0]
    return [source for line in re.findall(r"^COPY (.+) \S+$", first, re.MULTILINE) for source in line.split()]


def test_the_linter_has_nothing_to_say() -> None:
    done = subprocess.run([Path(sys.prefix, "bin/hadolint"), DOCKERFILE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_both_recipes_are_the_same() -> None:
    docker, apptainer = DOCKERFILE.read_text(), APPTAINER.read_text()
    (base,) = set(re.findall(r"^FROM (\S+@sha256:[0-9a-f]{64})", docker, re.MULTILINE))
    assert re.findall(r"^From: (\S+)", apptainer, re.MULTILINE) == [base]
    files = re.findall(r"^    (\S+) /src/$", apptainer, re.MULTILINE)
    assert {name.partition("/")[0] for name in copied()} == set(files)
    assert f"RUN {INSTALL}" in docker and INSTALL in apptainer
    assert re.search(r"^USER \$\{USER_ID\}$", docker, re.MULTILINE) and "ARG USER_ID=1000" in docker


def test_an_image_that_serves_is_pinned_and_runs_as_nobody_in_particular(capsys: pytest.CaptureFixture[str]) -> None:
    theirs = 'FROM python:3.11.7-slim\nRUN pip install x\nENTRYPOINT ["python"]\n'
    ours = guarded(theirs)
    assert ours.splitlines()[0] == f"FROM {BASE}" and f"FROM {BASE} AS build" in DOCKERFILE.read_text()
    user = ours[ours.index("USER ") :]
    assert user == 'USER 1000\n\nENTRYPOINT ["python"]\n' and "ENV MLFLOW_ALLOW_PICKLE_DESERIALIZATION=false\n" in ours
    assert capsys.readouterr().err == ""
    assert guarded(theirs.replace("3.11.7", "3.12.1")).startswith("FROM python:3.12.1-slim\n")
    assert "named by its tag" in capsys.readouterr().err
    for other in ("FROM x\n", 'ENTRYPOINT ["a"]\n', ""):
        with pytest.raises(StorageError, match="not known"):
            guarded(other)


def test_the_engine_gets_what_the_recipe_copies_and_no_more() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in lines
    assert {line[1:] for line in lines if line.startswith("!")} == set(copied())


@pytest.mark.slow
def test_what_is_copied_is_enough_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the environment of the tests has counts as installed: `make install` is what shows that the rest installs."""
    monkeypatch.delenv("PYTHONPATH", raising=False)
    for name in copied():
        source, target = ROOT / name, tmp_path / "src" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)
    env = tmp_path / "env"
    subprocess.run([sys.executable, "-m", "venv", env], check=True)
    here = next(env.glob("lib/python*/site-packages"))
    (here / "tests.pth").write_text(sysconfig.get_path("purelib") + "\n")
    script, *arguments = INSTALL.replace("/opt/biggan", str(env)).split()
    done = subprocess.run(["sh", script, *arguments], cwd=tmp_path / "src", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    shutil.rmtree(tmp_path / "src")
    said = subprocess.run(
        [env / "bin" / "biggan", "describe", "fashion-mnist"], cwd=tmp_path, capture_output=True, text=True, check=True
    ).stdout
    assert "parameters" in said
    place = subprocess.run(
        [env / "bin" / "python", "-c", "import jobs.cli; print(jobs.cli.__file__)"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert place.startswith(str(env))
