"""A lock per migration and host: two deliveries of one migration never act concurrently."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

from sojourn.errors import Temporary


@contextlib.contextmanager
def lock(path: Path, deadline_s: float) -> Iterator[None]:
    """Hold the lock of one migration on this host; the kernel releases it if the holder dies.

    Raises Temporary if another delivery still holds it at the deadline.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    until = time.monotonic() + deadline_s
    # A lock of flock(2) belongs to the open file: a holder or a CRIU that inherited the descriptor
    # would keep it beyond our death, hence O_CLOEXEC. The file is never removed, or one delivery
    # could lock the old file and another one its successor.
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        # flock(2) has no time-out of its own.
        while not _try_lock(descriptor):
            if time.monotonic() > until:
                raise Temporary(
                    f"Another delivery of the same migration has been at work for {deadline_s:g} s."
                )
            time.sleep(0.01)
        yield
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
