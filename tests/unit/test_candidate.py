"""Which processes can be migrated at all, asked of real ones."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from sojourn import process
from sojourn.preflight import candidate
from sojourn.process import KERNEL_THREAD
from tests.conftest import eventually

#: A program that begins something and then says a number.
TRACED = "import ctypes, sys; ctypes.CDLL(None).ptrace(0, 0, 0, 0); print(0, flush=True); sys.stdin.read()"
THREADED = (
    "import sys, threading\n"
    "def say(): print(threading.get_native_id(), flush=True); threading.Event().wait()\n"
    "threading.Thread(target=say, daemon=True).start(); sys.stdin.read()"
)
PLAIN = "import sys; print(0, flush=True); sys.stdin.read()"


@pytest.fixture
def child(request: pytest.FixtureRequest) -> Iterator[tuple[int, int]]:
    """Start a child that runs the code of the parameter: its PID and the number that it says."""
    code = getattr(request, "param", PLAIN)
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as running:
        assert running.stdout is not None
        yield running.pid, int(running.stdout.readline())
        running.kill()


def said(pid: int, worker: int | None = None) -> tuple[str, str]:
    """Return the code and the reason with which a process is refused."""
    finding = candidate.refusal(pid, worker)
    assert finding
    return finding.code, finding.sentence.partition(") ")[2].removesuffix(".")


def test_an_ordinary_process(child: tuple[int, int]) -> None:
    """Nothing speaks against an ordinary child, whether or not there is a worker."""
    assert candidate.refusal(child[0], None) is None
    assert candidate.refusal(child[0], 1_000_000) is None


def test_ourselves_and_our_ancestors() -> None:
    """The program that asks, its parent and the host's init are never candidates."""
    for pid in process.ancestors(os.getpid()):
        assert said(pid) == ("OWN_TREE", "is Sojourn's own worker or one of its ancestors; it can not migrate itself")


def test_the_worker_and_its_children(child: tuple[int, int]) -> None:
    """The worker and what runs below it are not candidates either."""
    for worker in (child[0], os.getpid()):
        assert said(child[0], worker)[0] == "OWN_TREE"


def test_a_process_that_is_gone() -> None:
    """A PID of nobody is refused, with a hint where to look."""
    with subprocess.Popen(["true"]) as gone:
        gone.wait()
    finding = candidate.refusal(gone.pid, None)
    assert finding
    assert (finding.code, finding.sentence) == ("PROCESS_GONE", f"There is no process {gone.pid} on this host.")
    assert "sojourn ps" in finding.hint


def test_a_zombie() -> None:
    """One that has ended and was not waited for has nothing left to migrate."""
    with subprocess.Popen(["true"]) as ended:
        eventually(lambda: process.stat(ended.pid).state == "Z")
        assert said(ended.pid)[0] == "ZOMBIE"


@pytest.mark.parametrize("child", [TRACED], indirect=True)
def test_a_traced_process(child: tuple[int, int]) -> None:
    """One with a debugger on it is refused, and the debugger is named."""
    code, why = said(child[0])
    assert code == "TRACED"
    assert why.startswith(f"is traced by process {os.getpid()}")


@pytest.mark.parametrize("child", [THREADED], indirect=True)
def test_a_thread(child: tuple[int, int]) -> None:
    """A thread's id is refused, and its process named; the process itself is a candidate."""
    assert said(child[1]) == ("THREAD", f"is a thread of process {child[0]}; migrate that one")
    assert candidate.refusal(child[0], None) is None


def test_a_thread_of_the_kernel() -> None:
    """A thread of the kernel is refused."""
    threads = [stat.pid for stat in process.everything() if stat.flags & KERNEL_THREAD]
    if not threads:
        pytest.skip("no thread of the kernel is visible in this PID namespace")
    assert said(threads[-1])[0] == "KERNEL_THREAD"


def test_the_survey(child: tuple[int, int]) -> None:
    """The survey lists roots only, the largest first, and never a thread of the kernel."""
    found = candidate.survey(None)
    assert child[0] not in [each.pid for each in found]
    assert [each.memory_bytes for each in found] == sorted((each.memory_bytes for each in found), reverse=True)
    assert all(process.stat(each.pid).parent <= 1 for each in found if process.exists(each.pid))
