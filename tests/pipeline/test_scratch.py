"""The folder of a launcher: private, and removed after a kill by the next start, with nothing of anybody else."""

import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from pipeline.scratch import scratch

KILLED = """
import os
from pipeline.scratch import scratch
with scratch() as place:
    (place / "config.yaml").write_text("secret")
    print(place, flush=True)
    os.kill(os.getpid(), 9)
"""


def test_a_killed_launchers_folder_goes_at_the_next_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    done = subprocess.run([sys.executable, "-c", KILLED], capture_output=True, text=True, check=False)
    left = Path(done.stdout.strip())
    assert done.returncode == -9 and (left / "config.yaml").exists() and stat.S_IMODE(left.stat().st_mode) == 0o700
    foreign, theirs = tmp_path / "biggan-notes", tmp_path / "biggan-theirs"
    foreign.mkdir()
    (foreign / "config.yaml").write_text("somebody's")
    theirs.mkdir()
    (theirs / "launcher.lock").touch()
    (theirs / "paper.tex").write_text("somebody's")
    with scratch() as first, scratch() as second:
        assert not left.exists() and first.exists() and second.exists()
    assert {path.name for path in tmp_path.iterdir()} == {"biggan-notes", "biggan-theirs"}
    assert (foreign / "config.yaml").exists() and {path.name for path in theirs.iterdir()} == {"launcher.lock", "paper.tex"}
