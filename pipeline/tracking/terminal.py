"""What a person sees while workers train: their lines and, on a terminal, a bar. No output that fails ends a training."""

import os
import re
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Self, TextIO, cast

from pipeline import variables
from pipeline.wording import printable

_BEGINS = re.compile(r"(training from|resuming at) image ")
_LOOK_SECONDS = 1.0
_LAST_WORDS_SECONDS = 10.0


class BestEffort:
    """A stream that goes silent for good, instead of raising, when it is closed, full, or its reader has gone."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            self._stream.write(text)
            self._stream.flush()
        except (OSError, ValueError):
            self._silence()
        return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except (OSError, ValueError):
            self._silence()

    def _silence(self) -> None:
        """Send what is still in buffers, too, to where it cannot fail: Python flushes them once more at its end."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\r\t"}
_CONTROLS |= {code: f"\\u{code:04x}" for code in (*range(0x2028, 0x202F), *range(0x2066, 0x206A))}


class Escaping:
    """A stream that shows control characters instead of sending them: names and messages of others may hold commands.

    Lines and progress bars stay as they are. What turns the direction of text is shown, too.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        return self._stream.write(text if text.isprintable() else text.translate(_CONTROLS))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def print_best_effort() -> Iterator[None]:
    """Inside, what is written to stdout and stderr is lost where they do not take it."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (cast(TextIO, BestEffort(stream)) for stream in before)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def complete_streams() -> None:
    """Open the standard streams that this process was started without, and let all of them take any text, and only print it.

    Else the next file that is opened becomes the stdout of a child, and a name that the terminal's encoding lacks is an error.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115 - for the process's life
    sys.stderr = sys.stderr or open(2, "w", closefd=False)  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        cast(Any, stream).reconfigure(errors="backslashreplace")
    sys.stdout, sys.stderr = (cast(TextIO, Escaping(stream)) for stream in (sys.stdout, sys.stderr))


class Show:
    """Passes workers' lines on to stdout; where stderr is a terminal and `bar` is set, below them is a bar of all `images`.

    Rank 0 keeps how far it is in the file `progress`.
    """

    def __init__(self, images: int, progress: Path, bar: bool) -> None:
        from tqdm import tqdm  # every command imports this module

        self._bar = tqdm(total=images, unit="img", unit_scale=True, desc="starting", disable=not (bar and sys.stderr.isatty()))
        self._progress = progress
        progress.touch()
        self._ended = threading.Event()
        self._threads: list[threading.Thread] = []
        self.environment = {variables.PROGRESS: str(progress), "PYTHONIOENCODING": "utf-8:backslashreplace"}
        """Of the workers."""

    def follow(self, stdout: IO[bytes]) -> None:
        """Begin to pass on `stdout`, of the workers."""
        self._threads = [threading.Thread(target=self._pass_on, args=(stdout,), daemon=True)]
        if not self._bar.disable:
            self._threads.append(threading.Thread(target=self._look, daemon=True))
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Wait for the last lines of workers that have ended; after Ctrl-C for nothing."""
        self._ended.set()
        for thread in self._threads if kind is None else []:
            thread.join(_LAST_WORDS_SECONDS)
        self._bar.close()

    def _pass_on(self, stdout: IO[bytes]) -> None:
        with stdout:
            self._say(stdout)

    def _say(self, stdout: IO[bytes]) -> None:
        for raw in stdout:
            line = printable(raw.decode(errors="replace").rstrip("\n").expandtabs())
            if self._bar.disable:
                print(line, flush=True)
                continue
            if _BEGINS.match(line):
                self._bar.set_description("training")
            self._bar.write(line)

    def _look(self) -> None:
        while not self._ended.wait(_LOOK_SECONDS):
            self._update()
        self._update()

    def _update(self) -> None:
        try:
            images = int(self._progress.read_text() or 0)
        except (OSError, ValueError):  # the disk is full, or the file has gone with the launcher
            return
        if images and not self._bar.n:
            # What a resume finds there, and the seconds of the start, say nothing about the speed.
            self._bar.initial, self._bar.start_t = images, time.time()
        self._bar.n = max(images, self._bar.n)
        self._bar.refresh()


class Told:
    """How far a worker is, for the launcher's bar; nothing where nobody asks."""

    def __init__(self) -> None:
        path = os.environ.get(variables.PROGRESS)
        self._file = os.open(path, os.O_WRONLY) if path and os.path.exists(path) else None

    def __call__(self, images: int) -> None:
        if self._file is not None:
            with suppress(OSError):  # a full disk
                os.pwrite(self._file, b"%020d" % images, 0)
