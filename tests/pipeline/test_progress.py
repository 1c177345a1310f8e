import io
import sys

import pytest

from pipeline import progress as module
from pipeline.progress import progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_has_a_bar_and_a_log_has_lines(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    with progress("drawing", 4) as update:
        update(1)
        update(3)
    assert "drawing: 100%" in sys.stderr.getvalue() and "4.00/4.00" in sys.stderr.getvalue()
    assert capsys.readouterr().out == ""


def test_lines_count_what_this_command_has_done(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with progress("quick", 2) as update:  # shorter than the time between two lines: nothing to say
        update(2)
    assert capsys.readouterr().out == ""
    with progress("packing", 3, resumes=True) as update:
        update(1)
        update(2)
    assert capsys.readouterr().out.splitlines()[0] == "packing: continuing after 1 image"
    monkeypatch.setattr(module, "LINE_SECONDS", 0)
    with progress("planning", 3, "probe") as update:
        for _ in range(3):
            update(1)
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(",")[0] for line in lines] == [f"planning: {done} of 3 probes" for done in (1, 2, 3)]
    assert all(line.endswith(" probes/s") for line in lines)


def test_slow_steps_have_a_speed_and_a_log_of_their_own(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter((0.0, 40.0))
    monkeypatch.setattr(module.time, "monotonic", lambda: next(clock))
    with progress("planning", 4, "step", log=sys.stderr) as update:
        update(1)
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "planning: 1 of 4 steps, 0.025 steps/s\n")
