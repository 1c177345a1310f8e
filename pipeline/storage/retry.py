"""Retry what may pass: one loop for every store, which says so when it takes long."""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from pipeline.errors import StorageError
from pipeline.storage.store_errors import ChangedError, FirstContactError, NotFoundError

T = TypeVar("T")

log = logging.getLogger(__name__)

SAY_AFTER = 10.0
"""Seconds of retrying after which the user is told, and again every minute."""
_LONGEST_PAUSE = 10.0

_here = threading.local()
_answered: set[str] = set()
_said: dict[str, float] = {}


@contextmanager
def once() -> Iterator[None]:
    """Within this block, this thread does not retry: an outer loop does."""
    before = getattr(_here, "once", False)
    _here.once = True
    try:
        yield
    finally:
        _here.once = before


def patiently(ask: Callable[[], T], store: str, seconds: float, *, stop: threading.Event | None = None, changes: int = 0) -> T:
    """Call `ask` until `store` answers, or until `seconds` are over or `stop` is set; then raise the last StorageError.

    A refusal is raised at once. An object that has changed is read again at most `changes` times.
    """
    if getattr(_here, "once", False):
        return _asked(ask, store)
    began, pause = time.monotonic(), 0.1
    while True:
        try:
            with once():
                return _asked(ask, store)
        except (StorageError, FirstContactError) as error:
            spent = time.monotonic() - began
            changes -= isinstance(error, ChangedError)
            if changes < 0 or (isinstance(error, FirstContactError) and store not in _answered) or (stop and stop.is_set()):
                raise
            if spent > seconds:
                raise StorageError(f"{error} (asked again for {spent:.0f} s)") from error
            if spent > SAY_AFTER:
                _say(store, error, seconds - spent)
        (stop or threading.Event()).wait(pause)
        pause = min(2 * pause, _LONGEST_PAUSE)


def _asked(ask: Callable[[], T], store: str) -> T:
    try:
        answer = ask()
    except NotFoundError:  # an answer as well
        _answered.add(store)
        raise
    _answered.add(store)
    return answer


def _say(store: str, error: Exception, left: float) -> None:
    """Log one line for a store, however many threads wait for it."""
    now = time.monotonic()
    if now - _said.get(store, -60.0) >= 60.0:
        _said[store] = now
        until = time.strftime("%H:%M:%S", time.localtime(time.time() + left))
        log.warning("waiting for %s: %s; trying again until %s", store, error, until)
