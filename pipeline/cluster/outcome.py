"""How the workers of one node ended: by the status that they left, what they said on stderr, and the stacks of a hang."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from pipeline import exit_codes
from pipeline.fault_tolerance import watchdog
from pipeline.runs import run_folder
from pipeline.runs.run_folder import RunState
from pipeline.signals import SIGNALS

RANKING = ("failed", "finished", "stopped", "hung", "crashed", "interrupted", "torn")
"""Of what nodes say of the end, the first counts. `torn` is a node that ended only because another had."""

_START = "Traceback (most recent call last)"
_TORN = re.compile(
    r"ChildFailedError|CalledProcessError|SignalException|Connection (closed|reset|refused)|Broken pipe|pair closure|"
    r"remote process exited|MailLost|DistNetworkError|DistStoreError|Timed out after \d+ seconds waiting for clients"
)
"""What is said where another worker or the launcher has ended before: no cause."""
_REPEATS = re.compile(
    r"(\w+\.)*(ImportError|ModuleNotFoundError|SyntaxError|IndentationError|AttributeError|NameError|TypeError|ValueError|"
    r"KeyError|IndexError|AssertionError|NotImplementedError|UnboundLocalError)\b"
)
"""Kinds of exception that come again in every start: something in the code or its installation is wrong."""


class Cause(NamedTuple):
    """The first exception of a start."""

    line: str
    """Its last line: kind and message. Empty if there is none."""
    trace: str
    """All of it; without one, the last lines that were said."""


JOINED = RunState("joined")
"""What the first worker of each node leaves when the process group has formed, for nobody but its launcher."""


def outcome(
    folder: Path, log: Path, end: RunState | None, code: int, said: str, dumps: Sequence[Path], deserted: bool = False
) -> RunState:
    """Return how the workers of this node ended.

    Args:
        folder: of the run.
        log: where they have written `said` during this start.
        end: what they have left as their status.
        code: exit code of `accelerate launch`.
        dumps: stacks of this start.
        deserted: whether they were ended because another node's had.
    """
    if end and end.state in ("failed", "finished", "stopped"):
        return end
    images = end.images if end else 0
    if deserted:
        return RunState("torn", images, exit_codes.CRASHED.number, "the workers of another node have ended: see the log there")
    # The launcher died of a signal, or had to pass it on to workers that were not ready to note it.
    if end in (None, JOINED) and (-code in SIGNALS or "death signal" in said):
        return RunState("interrupted", images, exit_codes.STOPPED.number)
    if dumps:
        message = f"{watchdog.explain(dumps)}; the stacks are in {folder}/logs/hang-rank*; the same command resumes"
        run_folder.write_status(folder, RunState("failed", images, exit_codes.HUNG.number, message))
        return RunState("hung", images, exit_codes.HUNG.number, message)
    line = first_cause(said).line
    torn = bool(_TORN.search(line))
    what = (
        f"another worker ended first, without saying why, and these lost it: {line}" if torn else f"the workers failed: {line}"
    )
    if not line:
        what = f"the workers ended without a result (launcher's exit code {code})"
    again = "the same command resumes from the last checkpoint"
    if _REPEATS.match(line):
        again = "the same command fails again until this is fixed, and then resumes from the last checkpoint"
    return RunState("torn" if torn else "crashed", images, exit_codes.CRASHED.number, f"{what}; see {log}; {again}")


def first_cause(said: str) -> Cause:
    """Return the first exception in what workers and launcher `said`; one that only follows from another's end comes last."""
    lines = said.splitlines()
    found = [_exception(lines[i:]) for i, line in enumerate(lines) if _START in line]
    for cause in found:
        if cause.line and not _TORN.search(cause.line):
            return cause
    if killed := re.search(r"Signal \d+ \((SIG\w+)\) received by PID (\d+)", said):
        memory = ", as Linux does when memory runs out" if killed[1] == "SIGKILL" else ""
        return Cause(f"process {killed[2]} was killed by {killed[1]}{memory}", "\n".join(lines[-10:]))
    if found:
        return found[0]
    error = next((line for line in lines if re.search(r"\berror: ", line)), "")
    return Cause(error[:300], "\n".join(lines[-10:]))


def _exception(lines: Sequence[str]) -> Cause:
    """Read the exception that begins in the first line, which may bear the name of its rank, as its other lines do."""
    rank = lines[0].partition("Traceback")[0]
    own = [line.removeprefix(rank) for line in lines if line.startswith(rank)][:200]
    last = next((i for i, line in enumerate(own[1:], 1) if line[:1].strip()), len(own) - 1)
    return Cause(own[last][:300] if last else "", "\n".join(own[: max(last + 1, 40)][:60]))
