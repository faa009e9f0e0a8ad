"""What tests of all rings need."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

Found = TypeVar("Found")


def eventually(condition: Callable[[], Found], *, within_s: float = 10) -> Found:
    """Return what the condition finds as soon as it finds something; fail if it never does."""
    until = time.monotonic() + within_s
    while not (found := condition()):
        assert time.monotonic() < until, f"still not so after {within_s:g} s"
        time.sleep(0.01)
    return found
