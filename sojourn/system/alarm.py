"""A deadline for Python code of our own process (setitimer(2))."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator


class TimedOut(BaseException):
    """A block took longer than it may.

    Not an Exception: nothing that the block catches may take it for an error of its own.
    """


@contextlib.contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Raise TimedOut in a block that takes longer. For the main thread only, as signal(2) is."""

    def over(*_: object) -> None:
        raise TimedOut

    # The handler first: without one SIGALRM ends the process (signal(7)). For the same reason the
    # timer is stopped below before the handler is taken away.
    before = signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
