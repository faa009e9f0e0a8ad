"""The deadline for Python code of our own process."""

from __future__ import annotations

import contextlib
import signal
import time

import pytest

from sojourn.system.alarm import TimedOut, at_most


def _handler(*_: object) -> None:
    """Stand in for the handler that a program had installed before."""


def _ignore_errors() -> None:
    for _ in range(400):
        with contextlib.suppress(Exception):
            time.sleep(0.05)


def test_a_block_that_takes_longer_is_left() -> None:
    """In the middle of whatever it does."""
    started = time.monotonic()
    with pytest.raises(TimedOut), at_most(0.05):
        time.sleep(20)
    assert time.monotonic() - started < 10


def test_a_block_cannot_take_it_for_an_error_of_its_own() -> None:
    """Code that suppresses every Exception does not suppress the deadline."""
    with pytest.raises(TimedOut), at_most(0.05):
        _ignore_errors()


def test_a_block_in_time_is_not_disturbed() -> None:
    """Nor is what follows it: the timer is stopped."""
    with at_most(0.05):
        pass
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    time.sleep(0.1)


@pytest.mark.parametrize("sleep_s", [0, 20])
def test_the_old_handler_is_restored(sleep_s: float) -> None:
    """Whether the block ended in time or not."""
    before = signal.signal(signal.SIGALRM, _handler)
    try:
        with contextlib.suppress(TimedOut), at_most(0.05):
            time.sleep(sleep_s)
        assert signal.getsignal(signal.SIGALRM) is _handler
    finally:
        signal.signal(signal.SIGALRM, before)
