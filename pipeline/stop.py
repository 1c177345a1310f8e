"""Requests to stop a run: signals, a file RUN/STOP, a time limit, a cloud's notice. Nothing here imports torch.

A request only sets a flag. The ranks agree on it between two updates, save, and end with `EXIT_CODE`.
"""

import json
import os
import re
import signal
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Literal, NoReturn

from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from pipeline.engines import Ranks

EXIT_CODE = 75
"""Stopped and saved, the same command goes on (`EX_TEMPFAIL`)."""

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP)
"""What a scheduler sends, and a terminal that closes. Ctrl-C is not among them: it ends a run at once, without saving."""

REASONS = ("", *(number.name for number in SIGNALS), "RUN/STOP", "stop.max_time", "the cloud's notice")
"""What ranks agree on is a place in here."""

BEGAN_VARIABLE = "BIGGAN_TRAIN_BEGAN"
"""Environment variable: when `biggan train` began, in seconds since the epoch."""

METADATA_VARIABLE = "BIGGAN_METADATA_URL"
"""Environment variable: base address of the cloud's metadata server, instead of the cloud's own."""

_POLL_SECONDS = 5.0
_DURATION = re.compile(r"(?:([\d.]+)d)?(?:([\d.]+)h)?(?:([\d.]+)m)?(?:([\d.]+)s?)?")


@dataclass(frozen=True)
class StopConfig:
    """When a run ends before its last image: saved, to go on with the same command."""

    max_time: float | str | None = None
    """Seconds, or as in 3h50m, after which a start saves and stops; saving comes on top. Default: no limit."""
    grace: int = 120
    """Seconds that `accelerate launch`, when a signal reaches it, leaves the workers to save before it kills them."""
    spot_notice: Literal["none", "aws", "gcp", "azure"] = "none"
    """Whose metadata server each node asks whether it is about to be taken away."""

    def __post_init__(self) -> None:
        if self.grace < 1:
            raise ValueError(f"grace={self.grace}: must be at least 1")
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
        self.began = float(os.environ.get(BEGAN_VARIABLE, time.time()))
        self.received = ""
        for number in _heeded():
            signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = self.received or signal.Signals(number).name


def _heeded() -> list[signal.Signals]:
    """`SIGNALS`, but a SIGHUP that `nohup` has had ignored stays ignored."""
    return [number for number in SIGNALS if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN]


def ignore_signals() -> None:
    """For a worker that is done, and for its children: the launcher signals whole process groups, and a save needs those."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def at_once() -> AbstractContextManager[None]:
    """Inside, `SIGNALS` end this process: nothing has begun that would have to be saved."""

    def leave(name: str) -> NoReturn:
        print(f"stopped by {name} before training began: the same command starts again", flush=True)
        sys.exit(EXIT_CODE)

    return _handled(leave)


@contextmanager
def forwarded(folder: Path) -> Iterator[None]:
    """Inside, `SIGNALS` to this process become RUN/STOP, and Ctrl-Z stops the workers, too.

    Not signals to the launcher: before its workers are up it dies of one, after that it kills them `stop.grace` seconds
    later, and a third signal ends it in the middle of that. The file waits for workers that are still starting.
    """

    def forward(name: str) -> None:
        try:
            request(folder, name)
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
    """Ask the training in `folder` to save and stop. The first reason stays."""
    with suppress(FileExistsError), open(folder / "STOP", "x") as file:
        file.write(reason)


def forget(folder: Path) -> None:
    """Remove a request that has been met, or was meant for an earlier start.

    What cannot be one, such as a folder with files in it, stays, and this says so: it stops every start.
    """
    from pipeline.removal import remove_request  # imports obstore, and every command this

    if not remove_request(folder / "STOP"):
        print(f"{folder / 'STOP'} is not removed, as it may hold files of yours: move it elsewhere to train", flush=True)


class Stop:
    """Whether this start is to end. Raises ConfigError if a metadata server is to be asked and does not answer."""

    def __init__(self, config: StopConfig, folder: Path, signals: Signals, ranks: "Ranks") -> None:
        self._signals, self._ranks = signals, ranks
        # Each node's first rank looks: RUN may be on a disk of its own, and a signal reaches one node.
        self._file = folder / "STOP" if os.environ.get("LOCAL_RANK", "0") == "0" else None
        self._deadline = signals.began + config.seconds
        self._notice = threading.Event()
        if config.spot_notice != "none" and os.environ["LOCAL_RANK"] == "0":  # once per node
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
        if self._file:
            try:
                reason = self._file.read_text().strip()
                return reason if reason in REASONS[1:] else "RUN/STOP"
            except FileNotFoundError:
                pass
        return "stop.max_time" if time.time() > self._deadline else ""


class SpotWatch:
    """Asks a cloud's metadata server whether this machine is about to be taken away (AWS: 2 minutes ahead, others 30 s)."""

    def __init__(self, cloud: Literal["aws", "gcp", "azure"]) -> None:
        own = "http://metadata.google.internal" if cloud == "gcp" else "http://169.254.169.254"
        self._url = os.environ.get(METADATA_VARIABLE, own).rstrip("/")
        self._cloud = cloud
        # The server is on the machine's own link: no proxy leads to it.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        self._ask = {"aws": self._aws, "gcp": self._gcp, "azure": self._azure}[cloud]

    def check(self) -> None:
        """Raises ConfigError if the server does not answer: this is another cloud, or none."""
        for attempt in range(3):
            try:
                self._ask()
                return
            except (OSError, ValueError) as error:
                reason = error
                time.sleep(attempt)
        raise ConfigError(
            f"stop.spot_notice={self._cloud}: {self._url} does not answer as its metadata server does ({reason}): "
            "name another cloud, or none"
        )

    def run(self, notice: threading.Event) -> None:
        """Ask until there is a notice. One question that fails is no notice: the next comes in seconds."""
        while not notice.is_set():
            try:
                if self._ask():
                    notice.set()
            except (OSError, ValueError):
                pass
            notice.wait(_POLL_SECONDS)

    def _get(self, path: str, headers: dict[str, str], method: str = "GET") -> str:
        request = urllib.request.Request(self._url + path, headers=headers, method=method)
        with self._opener.open(request, timeout=2) as answer:
            return answer.read().decode()

    def _aws(self) -> bool:
        token = self._get("/latest/api/token", {"X-aws-ec2-metadata-token-ttl-seconds": "60"}, "PUT")
        try:
            self._get("/latest/meta-data/spot/instance-action", {"X-aws-ec2-metadata-token": token})
        except urllib.error.HTTPError as error:
            if error.code != 404:
                raise
            return False
        return True

    def _gcp(self) -> bool:
        return self._get("/computeMetadata/v1/instance/preempted", {"Metadata-Flavor": "Google"}).strip() == "TRUE"

    def _azure(self) -> bool:
        """Events are of a whole scale set: only those that name this machine count, and not a pause of seconds (Freeze)."""
        ours = {"Metadata": "true"}
        events = json.loads(self._get("/metadata/scheduledevents?api-version=2020-07-01", ours))["Events"]
        events = [event for event in events if event["EventType"] in ("Preempt", "Terminate", "Reboot", "Redeploy")]
        if not events:
            return False
        name = self._get("/metadata/instance/compute/name?api-version=2021-02-01&format=text", ours).strip()
        return any(name in event["Resources"] for event in events)
