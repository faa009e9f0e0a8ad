"""A process held by a descriptor."""

from __future__ import annotations

import os
import platform
import signal
import subprocess
import sys

import pytest

from sojourn.system.pidfd import Held

#: The kernel from which on a stranger is told how a process ended.
TELLS = tuple(int(part) for part in platform.release().split(".")[:2]) >= (6, 15)


@pytest.mark.parametrize(
    ("program", "how"),
    [
        ("import sys; input(); sys.exit(3)", "exit code 3"),
        ("input()", "exit code 0"),
        ("import os; input(); os.kill(os.getpid(), 15)", "signal 15"),
    ],
)
def test_how_it_ended(program: str, how: str) -> None:
    """It lives until it ends, and what its parent gets to know is known."""
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL) as child:
        held = Held(child.pid)
        held.open()
        assert not held.ended_within(0.05)
        child.communicate(b"\n")
        assert held.ended_within(5)
        assert held.how_it_ended() == (how if TELLS else "")
        held.close()


def test_who_is_not_reaped_is_not_known() -> None:
    """A zombie has ended; how is told when its parent has taken it."""
    pid = os.fork()
    if pid == 0:
        os._exit(1)
    held = Held(pid)
    held.open()
    assert held.ended_within(5)
    assert held.how_it_ended() == ""
    os.waitpid(pid, 0)
    assert held.how_it_ended() == ("exit code 1" if TELLS else "")
    held.close()


def test_a_process_that_is_not_there_yet() -> None:
    """Who comes later is held then; nobody is nobody's PID 0."""
    with subprocess.Popen(["sleep", "1000"]) as child:
        gone = child.pid
        os.kill(gone, signal.SIGKILL)
    held, nobody = Held(gone), Held(0)
    held.open()
    nobody.open()
    assert held.descriptor is nobody.descriptor is None
    assert not held.ended_within(0.01)
    assert held.how_it_ended() == ""
    held.close()
