"""Requests to stop a run: signals, a file RUN/STOP, a time limit, a cloud's notice. Nothing here imports torch.

A request only sets a flag. The ranks agree on it between two updates, save, and end with `exit_codes.STOPPED`.
"""

import os
import re
import signal
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Literal, NoReturn

from pipeline import exit_codes, variables
from pipeline.bounds import Bounds, check_bounds
from pipeline.errors import ConfigError
from pipeline.fault_tolerance.spot_notice import SpotWatch
from pipeline.signals import SIGNALS

if TYPE_CHECKING:
    from pipeline.engine.ranks import Ranks

REASONS = ("", *(number.name for number in SIGNALS), "RUN/STOP", "stop.max_time", "the cloud's notice")
"""What ranks agree on is a place in here."""


LARGEST = 1 << 20
"""Bytes of a file RUN/STOP that may be removed: a larger one may be somebody's data."""
_LONGEST_REASON = 64  # bytes
_DURATION = re.compile(r"(?:([\d.]+)d)?(?:([\d.]+)h)?(?:([\d.]+)m)?(?:([\d.]+)s?)?")


@dataclass(frozen=True)
class StopConfig:
    """When a run ends before its last image: saved, to go on with the same command."""

    max_time: float | str | None = None
    """Seconds, or as in 3h50m, after which a start saves and stops; saving comes on top. Default: no limit."""
    grace: Annotated[int, Bounds(ge=1)] = 120
    """Seconds that `accelerate launch`, when a signal reaches it, leaves the workers to save before it kills them."""
    spot_notice: Literal["none", "aws", "gcp", "azure"] = "none"
    """Whose metadata server each node asks whether it is about to be taken away."""

    def __post_init__(self) -> None:
        check_bounds(self)
        if self.max_time is not None and not self.seconds > 0:
            raise ValueError(f"max_time={self.max_time}: must be above 0")

    @property
    def seconds(self) -> float:
        """`max_time` in seconds, infinite without one."""
        return float("inf") if self.max_time is None else duration(str(self.max_time))


def duration(text: str) -> float:
    """Seconds of `90`, `45m` or `3h50m`. Raises ValueError."""
    parts = _DURATION.fullmatch(text)
    try:
        if parts and text:
            scaled = zip((86400, 3600, 60, 1), parts.groups(), strict=True)
            return sum(scale * float(number) for scale, number in scaled if number)
    except ValueError:
        pass
    raise ValueError(f"max_time={text}: set seconds, or a time as in 3h50m")


class Signals:
    """Notes the first of `SIGNALS` instead of dying of it. A worker makes one first of all, in its main thread."""

    def __init__(self) -> None:
        self.began = float(os.environ.get(variables.TRAIN_BEGAN, time.monotonic()))
        self.received = ""
        for number in _heeded():
            signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = self.received or signal.Signals(number).name


def _heeded() -> list[signal.Signals]:
    """`SIGNALS`, but a SIGHUP that `nohup` has had ignored stays ignored."""
    return [number for number in SIGNALS if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN]


def at_once() -> AbstractContextManager[None]:
    """Inside, `SIGNALS` end this process: nothing has begun that would have to be saved."""

    def leave(name: str) -> NoReturn:
        print(f"stopped by {name} before training began: the same command starts again", flush=True)
        sys.exit(exit_codes.STOPPED.number)

    return _handled(leave)


@contextmanager
def forwarded(folder: Path, place: Path) -> Iterator[None]:
    """Inside, `SIGNALS` to this process become RUN/STOP, or `place`/STOP if RUN takes none, and Ctrl-Z stops the workers, too.

    Not signals to the launcher: before its workers are up it dies of one, after that it kills them `stop.grace` seconds
    later, and a third signal ends it in the middle of that. The file waits for workers that are still starting.
    """

    def forward(name: str) -> None:
        try:
            request(folder, name)
        except OSError:
            try:
                request(place, name)
            except OSError as error:
                print(f"biggan: {name} cannot be passed on: {error}", file=sys.stderr)

    before = signal.getsignal(signal.SIGTSTP)
    if before != signal.SIG_IGN:
        signal.signal(signal.SIGTSTP, _pause)
    try:
        with _handled(forward):
            yield
    finally:
        signal.signal(signal.SIGTSTP, before)


def _pause(number: int, frame: FrameType | None) -> None:
    """Ctrl-Z: workers are in sessions of their own, where it does not reach them. They stop and continue with this process."""
    import psutil  # type: ignore[import-untyped]

    below = psutil.Process().children(recursive=True)
    for process in below:
        with suppress(psutil.Error):
            process.suspend()
    os.kill(os.getpid(), signal.SIGSTOP)
    for process in below:
        with suppress(psutil.Error):
            process.resume()


@contextmanager
def _handled(handle: Callable[[str], None]) -> Iterator[None]:
    def handler(number: int, frame: FrameType | None) -> None:
        handle(signal.Signals(number).name)

    before = {number: signal.signal(number, handler) for number in _heeded()}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


def request(folder: Path, reason: str = "") -> None:
    """Ask the training in `folder` to save and stop. The first request stays."""
    with suppress(FileExistsError), open(folder / "STOP", "x") as file, suppress(OSError):
        file.write(reason)  # on a full disk a request without a reason
        file.flush()


def requested(folder: Path) -> str | None:
    """Return the reason of a request in `folder`, None without one. Whatever is called STOP is a request.

    Its text is read only where it is a plain file that can be read: a pipe would block, a link may lead anywhere.
    """
    path = folder / "STOP"
    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            return "RUN/STOP"
    except OSError:
        return None
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with open(descriptor, "rb") as file:
            reason = file.read(_LONGEST_REASON).decode(errors="replace").strip()
    except OSError:
        return "RUN/STOP"
    return reason if reason in REASONS[1:] else "RUN/STOP"


def is_request(data: bytes) -> bool:
    """Return whether a file RUN/STOP can be nothing else, by its content: empty, or a reason as we write it."""
    return data[:_LONGEST_REASON].strip() in {reason.encode() for reason in REASONS} and len(data) <= _LONGEST_REASON


def lasting(folder: Path) -> str:
    """Return what is called RUN/STOP and is no plain, small file, so that it is not removed, with its path; else nothing."""
    path = folder / "STOP"
    try:
        found = path.lstat()
    except OSError:
        return ""
    if stat.S_ISREG(found.st_mode):
        return f"{path}, a file of {found.st_size:,} bytes" if found.st_size > LARGEST else ""
    kinds = {stat.S_IFDIR: "a folder", stat.S_IFLNK: "a link", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
    return f"{path}, {kinds.get(stat.S_IFMT(found.st_mode), 'a device')}"


def refuse_lasting(folder: Path) -> None:
    """Raise ConfigError if RUN/STOP is nothing that we remove: it would stop a start as soon as it has begun."""
    if what := lasting(folder):
        raise ConfigError(f"{what}, asks each training there to stop: move it away, then run the same command again")


def forget(folder: Path) -> None:
    """Remove a request that has been met, or was meant for an earlier start. What is `lasting` stays."""
    from pipeline.storage.removal import remove_request  # imports obstore, and every command this

    if not lasting(folder):
        remove_request(folder / "STOP")


class Stop:
    """Whether this start is to end. Raises ConfigError if a metadata server is to be asked and does not answer."""

    def __init__(self, config: StopConfig, folder: Path, signals: Signals, ranks: "Ranks") -> None:
        self._signals, self._ranks = signals, ranks
        # Each node's first rank looks: RUN may be on a disk of its own, and a signal reaches one node.
        own = os.environ.get(variables.LAUNCH_FOLDER)
        self._folders = [folder, *([Path(own)] if own else [])] if ranks.local_main else []
        self._deadline = signals.began + config.seconds
        self._notice = threading.Event()
        if config.spot_notice != "none" and ranks.local_main:
            watch = SpotWatch(config.spot_notice)
            watch.check()
            threading.Thread(target=watch.run, args=(self._notice,), name="spot-notice", daemon=True).start()

    def agreed(self) -> str | None:
        """Why all ranks stop now, or None. Collective: one reduction of one number."""
        return REASONS[self._ranks.greatest(REASONS.index(self._wanted()))] or None

    def _wanted(self) -> str:
        if self._signals.received:
            return self._signals.received
        if self._notice.is_set():
            return "the cloud's notice"
        for folder in self._folders:
            if reason := requested(folder):
                return reason
        return "stop.max_time" if time.monotonic() > self._deadline else ""
