"""A program that adopts orphans, with descendants in one shape: ``python3 adopt.py SHAPE [FILE]``.

With FILE, the descendants come only when that exists. Needs the standard library only. Prints
``ready``.
"""

from __future__ import annotations

import ctypes
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path


def adopt() -> None:
    """Become the parent of all descendants whose own parent ends (prctl(2))."""
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)


def rest() -> None:
    os.closerange(3, 64)  # the pipes of those who wait in ``start``
    while True:
        time.sleep(0.05)


def start(act: Callable[[], object]) -> int:
    """Start a process, and wait until it has acted, or ended."""
    done, acted = os.pipe()
    pid = os.fork()
    if pid == 0:
        act()
        os.write(acted, b"x")
        rest()
    os.close(acted)
    os.read(done, 1)
    os.close(done)
    return pid


def orphan(between: Callable[[], object], act: Callable[[], object]) -> None:
    """Start a process whose parent has ended."""

    def middle() -> None:
        between()
        start(act)
        os._exit(0)

    os.waitpid(start(middle), 0)


def nothing() -> None:
    pass


def daemon() -> None:
    """A daemon of the usual kind: in the session of a process that has ended."""
    orphan(os.setsid, nothing)


def ended_daemon() -> None:
    """Such a one that has ended itself; nobody waits for it."""
    orphan(os.setsid, lambda: os._exit(0))


def deep_daemon() -> None:
    start(lambda: (adopt(), daemon()))


def orphan_of_a_leader() -> None:
    """An orphan in the session of a process that lives."""
    start(lambda: (os.setsid(), orphan(nothing, nothing)))


def orphan_in_session() -> None:
    orphan(nothing, nothing)


def leading_orphan() -> None:
    orphan(nothing, os.setsid)


def born_before() -> None:
    """A child that was born before its parent began a session."""
    start(lambda: (start(nothing), os.setsid()))


def group_without_leader() -> None:
    orphan(lambda: os.setpgid(0, 0), nothing)


def main(shape: str, file: str = "") -> None:
    adopt()
    while file and not Path(file).exists():
        time.sleep(0.01)
    globals()[shape]()
    print("ready", flush=True)
    rest()


if __name__ == "__main__":
    main(*sys.argv[1:])
