"""What a waiting thread is seen in, and the registers of a stopped one, on real processes."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sojourn.errors import ProcessGone
from sojourn.system import ptrace, restart, waits

pytestmark = pytest.mark.skipif(
    platform.machine() != "x86_64" or os.geteuid() != 0, reason="needs root on x86_64"
)

#: ``ERESTART_RESTARTBLOCK`` of include/linux/errno.h, as a register holds it.
TO_RESTART = 2**64 - 516


#: nanosleep and clock_nanosleep.
SLEEPS = {35, 230}

#: A program that sleeps again and again.
NAPS = "import time\nwhile True: time.sleep(0.2)"


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    """Start a program that sleeps, and wait until it does."""
    with _started(["sleep", "1000"]) as child:
        yield child


@contextlib.contextmanager
def _started(command: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(command) as child:
        try:
            until = time.monotonic() + 10
            while not ((call := waits.call(child.pid)) and call.number in SLEEPS):
                assert time.monotonic() < until
                time.sleep(0.01)
            yield child
        finally:
            child.kill()


def _stop(pid: int) -> None:
    os.kill(pid, signal.SIGSTOP)
    _await_stop(pid)


def _await_stop(pid: int) -> None:
    until = time.monotonic() + 10
    while waits.state(pid) != "T":
        assert time.monotonic() < until
        time.sleep(0.001)


def test_a_sleeping_thread(sleeper: subprocess.Popen[bytes], tmp_path: Path) -> None:
    """Its call and since when it sleeps are seen, and survive being written."""
    began = time.time()
    time.sleep(1.5)
    observer = waits.observed([sleeper.pid], restart.may_restart)
    wait = observer.waits[sleeper.pid]
    assert wait.call.number in restart.NUMBERS
    assert wait.since is not None
    assert abs(wait.since - began) < 1
    waits.save(observer.waits, tmp_path / "waits.json")
    assert waits.load(tmp_path / "waits.json") == observer.waits
    assert waits.load(tmp_path / "none.json") == {}


def test_a_stopped_thread_is_not_looked_at_again(sleeper: subprocess.Popen[bytes]) -> None:
    """What it was in before it was stopped is what counts."""
    observer = waits.observed([sleeper.pid], restart.may_restart)
    before = dict(observer.waits)
    _stop(sleeper.pid)
    observer.look_again()
    assert observer.waits == before
    os.kill(sleeper.pid, signal.SIGCONT)
    observer.look_again()
    assert observer.waits == before


def test_a_traced_thread_is_not_looked_at_again() -> None:
    """What it does then is the work of whoever traces it: CRIU runs code of its own in it."""
    with _started([sys.executable, "-c", NAPS]) as napper:
        observer = waits.observed([napper.pid], restart.may_restart)
        before = dict(observer.waits)
        assert before
        # Not ``ptrace.seized``, which waits for its stop: it is traced while it runs.
        assert ctypes.CDLL(None).ptrace(ptrace.SEIZE, napper.pid, None, None) == 0
        time.sleep(0.5)
        observer.look_again()
        observer.look_again()
        assert observer.waits == before


def test_calls_of_no_interest(sleeper: subprocess.Popen[bytes]) -> None:
    """They are not kept, and a process that is gone has none."""
    assert waits.observed([sleeper.pid], lambda _: False).waits == {}
    assert waits.observed([2**22 + 1], restart.may_restart).waits == {}


def test_registers_of_a_stopped_thread(sleeper: subprocess.Popen[bytes]) -> None:
    """They can be read and written, and it stays stopped."""
    _stop(sleeper.pid)
    with ptrace.seized(sleeper.pid):
        found = ptrace.registers(sleeper.pid)
        ptrace.set_registers(sleeper.pid, found | {"r12": 0x1234})
        assert ptrace.registers(sleeper.pid) == found | {"r12": 0x1234}
        ptrace.set_registers(sleeper.pid, found)
    assert found["ax"] == TO_RESTART
    assert found["orig_ax"] in restart.NUMBERS
    code = waits.memory(sleeper.pid, found["ip"] - 2, 2)
    assert code == restart.X86_64.instruction
    # On its way back into its stop it is in the kernel, where ``/proc`` calls it running.
    _await_stop(sleeper.pid)
    assert sleeper.poll() is None


def test_status_of_a_thread() -> None:
    """A pending signal counts only if it has a handler and is not blocked."""
    script = "trap 'echo no' USR1; echo ready; read line"
    with subprocess.Popen(
        ["bash", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        _stop(child.pid)
        status = waits.status(child.pid)
        assert (status.inner_id, status.confined, status.signalled) == (child.pid, False, False)
        os.kill(child.pid, signal.SIGTERM)  # it has no handler
        assert not waits.status(child.pid).signalled
        os.kill(child.pid, signal.SIGUSR1)
        assert waits.status(child.pid).signalled
        child.kill()


def test_what_is_gone() -> None:
    """A thread that has ended has no status, no memory, and cannot be traced."""
    nobody = 2**22 + 1
    with pytest.raises(ProcessGone):
        waits.status(nobody)
    with pytest.raises(ProcessGone), ptrace.seized(nobody):
        pass
    assert (waits.threads(nobody), waits.call(nobody), waits.state(nobody)) == ([], None, "")
    assert waits.memory(nobody, 0, 2) is None
