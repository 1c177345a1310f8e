"""Signals that ask a training to stop."""

import signal

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP)
"""By schedulers, clouds, and terminals that close. Ctrl-C is not among them: it ends a run at once, without saving."""


def ignore_signals() -> None:
    """Ignore `SIGNALS`: for a worker that is done, and for its children, as the launcher signals whole process groups."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
