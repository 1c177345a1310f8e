"""A second request where the answer to the first is late: of many that a store serves at once, a few take long."""

import statistics
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait

_AFTER = 4.0  # times the median, and not below `_LEAST` seconds
_LEAST = 0.5
_SHARE = 0.05  # of all requests, at most


class Hedge:
    """Sends requests, `lines` at a time; threads may share it."""

    def __init__(self, lines: int) -> None:
        self.sent = 0
        """Second requests."""
        self._asked = 0
        self._seconds: deque[float] = deque(maxlen=64)
        self._lock = threading.Lock()
        self._lines = ThreadPoolExecutor(lines, "fetch-line")

    def close(self) -> None:
        """Wait until the threads are gone."""
        self._lines.shutdown(cancel_futures=True)

    def ask(self, ask: Callable[[], bytes]) -> bytes:
        """Ask, and ask a second time if the answer is late; return the first that comes. Raises what both raise."""
        began = time.monotonic()
        first = self._lines.submit(ask)
        with self._lock:
            self._asked += 1
            known = len(self._seconds) >= 16
            limit = max(_LEAST, _AFTER * statistics.median(self._seconds)) if known else None
        asked = {first}
        if limit is not None and not wait(asked, limit).done:
            with self._lock:
                may = self.sent < _SHARE * self._asked + 1
                self.sent += may
            if may:
                asked = {first, self._lines.submit(ask)}
        done, others = wait(asked, return_when=FIRST_COMPLETED)
        if others and all(one.exception() for one in done):
            done, others = wait(others)
        for one in others:
            one.cancel()
        answer = next((one for one in done if not one.exception()), next(iter(done))).result()
        with self._lock:
            self._seconds.append(time.monotonic() - began)
        return answer
