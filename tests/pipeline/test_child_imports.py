"""Children import what this process does, and nothing from the directory where they start."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import child_imports
from pipeline.data import transform
from pipeline.errors import ConfigError

ROOT = str(Path(child_imports.__file__).parents[1])


@pytest.mark.parametrize("path", ["", ":", "own", ":own:", "{here}:own:.", f"{ROOT}:own"])
def test_nothing_comes_from_the_working_directory(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("random.py", "model.py", "pipeline.py", "jobs/__init__.py"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text("raise SystemExit('imported from the working directory')")
    Path("own").mkdir()
    Path("own/mine.py").write_text("")
    environ = {"PYTHONPATH": path.format(here=tmp_path)}
    for code in ("import random, model, pipeline.child_imports, jobs", *(["import mine"] if "own" in path else [])):
        command = [sys.executable, "-c", code]
        subprocess.run(command, env=dict(os.environ) | child_imports.child_environment(environ), check=True, timeout=60)


def test_a_users_transform_may_be_where_he_types(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    Path("my_own_transform.py").write_text("def same(image, rng):\n    return image\n")
    Path("my_broken_transform.py").write_text("x = undefined\n")
    Path("json.py").write_text("raise SystemExit('imported from the working directory')")
    assert transform.find_transform("my_own_transform:same").__name__ == "same"
    assert sys.path[-1] == str(tmp_path)  # all else comes first
    for name, said in (
        ("my_broken_transform:same", "NameError: name 'undefined' is not defined"),
        ("my_own_transform:other", "has no attribute 'other'"),
        ("no_such_module:f", "No module named 'no_such_module'"),
    ):
        with pytest.raises(ConfigError, match=f"data.transform={name}: .*{said}; set data.transform=PACKAGE.MODULE:FUNCTION"):
            transform.find_transform(name)
