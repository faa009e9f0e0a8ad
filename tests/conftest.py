"""What tests of all rings share."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

Found = TypeVar("Found")


def eventually(condition: Callable[[], Found], *, within_s: float = 10) -> Found:
    """Return the condition's result as soon as it is true; fail if it is not in time."""
    until = time.monotonic() + within_s
    while not (found := condition()):
        assert time.monotonic() < until, f"the condition is still false after {within_s:g} s"
        time.sleep(0.01)
    return found
