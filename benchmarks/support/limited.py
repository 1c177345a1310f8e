"""Run commands that may fail, hang or run out of memory without ending the benchmark."""

import contextlib
import os
import signal
import subprocess
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from pipeline.liveness import die_with_parent
from pipeline.training.micro_batch import DOES_NOT_FIT


class FailedError(Exception):
    """A command failed or took too long; the message is one line."""


class DoesNotFitError(Exception):
    """A command did not have enough memory."""


def call(
    command: Sequence[str],
    limit: float,
    log: Path,
    given: str = "",
    environment: Mapping[str, str] | None = None,
    good: Collection[int] = (0,),
) -> str:
    """Run `command` for at most `limit` seconds with `given` as its input; return its stdout. Append its stderr to `log`.

    Raises FailedError with the last line of its errors if it ended with another code than the `good` ones, and
    DoesNotFitError.
    """
    with open(log, "ab") as errors:
        began = errors.tell()
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": errors}
        # A session of its own: what it started is ended with it.
        process = subprocess.Popen(
            command,
            env={**os.environ, **(environment or {})},
            text=True,
            start_new_session=True,
            preexec_fn=die_with_parent,  # noqa: PLW1509 - one system call, which takes no lock
            **pipes,  # type: ignore[call-overload]
        )
        try:
            said, _ = process.communicate(given, timeout=limit)
        except BaseException as error:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            if isinstance(error, subprocess.TimeoutExpired):
                raise FailedError(f"no end after {limit:.0f} s: {last_line(log, began)}") from None
            raise
    if process.returncode in good:
        return said
    if process.returncode in (DOES_NOT_FIT, -signal.SIGKILL):  # the kernel kills those that take too much
        raise DoesNotFitError
    raise FailedError(last_line(log, began) or f"exit code {process.returncode}")


def last_line(log: Path, began: int) -> str:
    """Return the last line of `log` after its first `began` bytes that is not empty."""
    with open(log, "rb") as file:
        file.seek(began)
        lines = file.read().decode(errors="replace").split("\n")
    # tqdm writes its line again and again.
    return next((line.rpartition("\r")[2].strip() for line in reversed(lines) if line.strip()), "")
