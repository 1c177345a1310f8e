"""Output of a training: a bar on a terminal, and no end of anything where it is closed, full, or nobody reads."""

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from pipeline.tracking.terminal import BestEffort

TALKS = """
import sys
from pipeline.tracking.terminal import complete_streams, print_best_effort
complete_streams()
with print_best_effort():
    for i in range(20_000):
        print("line", i)
        print("said", i, file=sys.stderr)
    open(sys.argv[1], "w").write("done")
print("the end, of a run in l\\u00e4ufe")
"""


@pytest.mark.long
@pytest.mark.parametrize("redirected", ["| head -1", ">&-", ">&- 2>&- <&-", ">/dev/full", "2>/dev/full", "2>&1 | head -1"])
def test_output_that_fails_ends_nothing(tmp_path: Path, redirected: str) -> None:
    (tmp_path / "talks.py").write_text(TALKS)
    shell = f"set -o pipefail; '{sys.executable}' talks.py '{tmp_path}/result' {redirected}"
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run(["bash", "-c", shell], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "result").read_text() == "done", "a file of ours is never taken for stdout"
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr


def test_what_can_be_said_is_said(tmp_path: Path) -> None:
    with open(tmp_path / "log", "w") as file:
        stream = BestEffort(file)
        print("one", "two", file=stream, flush=True)  # type: ignore[arg-type]
        assert not stream.isatty() and stream.fileno() == file.fileno()
    assert (tmp_path / "log").read_text() == "one two\n"


LAUNCHER = """
import os, subprocess, sys
from pathlib import Path
from pipeline.tracking.terminal import Show
with Show(4000, Path(sys.argv[2]), bar=True) as show:
    child = subprocess.Popen([sys.executable, "-c", sys.argv[1]], env=os.environ | show.environment, stdout=subprocess.PIPE)
    show.follow(child.stdout)
    child.wait()
"""
WORKER = """
from pipeline.tracking.terminal import Told
told = Told()
print("resuming at image 1,000 of 4,000: l\\u00e4uft", flush=True)
for images in (1000, 2000, 3000):
    told(images)
print("     3,000 img", flush=True)
"""


def test_a_terminal_has_a_bar_below_the_lines(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    child = subprocess.Popen([sys.executable, "-c", LAUNCHER, WORKER, str(tmp_path / "progress")], stdout=theirs, stderr=theirs)
    os.close(theirs)
    seen = b""
    try:
        while part := os.read(ours, 65536):
            seen += part
    except OSError:  # how a terminal ends on Linux
        pass
    assert child.wait(timeout=60) == 0, seen
    drawn = seen.decode().split("\r")
    assert any(line.startswith("training:  75%") and "3.00k/4.00k" in line for line in drawn), drawn
    assert any("resuming at image 1,000 of 4,000: läuft" in line for line in drawn)
    assert any(line.strip() == "3,000 img" for line in drawn)


def test_a_file_gets_plain_lines(tmp_path: Path) -> None:
    command = [sys.executable, "-c", LAUNCHER, WORKER, str(tmp_path / "progress")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "resuming at image 1,000 of 4,000: läuft\n     3,000 img\n"
    assert done.stderr == ""


HOSTILE = r"""
from pipeline.tracking.terminal import complete_streams
complete_streams()
import sys
for stream in (sys.stdout, sys.stderr):
    print("\x1b]0;pwned\x07 \x9b31m \u202e caf\udce9 \tl\u00e4uft\r", file=stream, flush=True)
"""


def test_a_terminal_gets_no_commands_of_others() -> None:
    environment = os.environ | {"PYTHONIOENCODING": "utf-8"}
    done = subprocess.run([sys.executable, "-c", HOSTILE], capture_output=True, env=environment, check=True)
    wanted = "\\x1b]0;pwned\\x07 \\x9b31m \\u202e caf\\udce9 \tläuft\r\n"
    assert done.stdout.decode() == done.stderr.decode() == wanted


def test_lines_of_workers_are_lines(tmp_path: Path) -> None:
    worker = "print('a\\tb \\x1b[31mred\\rbiggan: error: your run is lost')"
    command = [sys.executable, "-c", LAUNCHER, worker, str(tmp_path / "progress")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "a       b \\x1b[31mred\\rbiggan: error: your run is lost\n"
