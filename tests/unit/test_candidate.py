"""Which processes can be migrated at all, tested with real ones."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from sojourn.preflight import candidate
from sojourn.system import process
from sojourn.system.process import KERNEL_THREAD
from tests.conftest import eventually

#: Programs that begin something and then print a number.
TRACED = (
    "import ctypes, sys; ctypes.CDLL(None).ptrace(0, 0, 0, 0); print(0, flush=True); "
    "sys.stdin.read()"
)
THREADED = (
    "import sys, threading\n"
    "def show(): print(threading.get_native_id(), flush=True); threading.Event().wait()\n"
    "threading.Thread(target=show, daemon=True).start(); sys.stdin.read()"
)
PLAIN = "import sys; print(0, flush=True); sys.stdin.read()"


@pytest.fixture
def child(request: pytest.FixtureRequest) -> Iterator[tuple[int, int]]:
    """Start a child that runs the parameter's code; return its PID and the number it prints."""
    code = getattr(request, "param", PLAIN)
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as running:
        assert running.stdout is not None
        yield running.pid, int(running.stdout.readline())
        running.kill()


def reason(pid: int, worker: int | None = None) -> tuple[str, str]:
    """Return the code and the reason with which a process is refused."""
    finding = candidate.refusal(pid, worker)
    assert finding
    return finding.code, finding.sentence.partition(") ")[2].removesuffix(".")


def test_an_ordinary_process(child: tuple[int, int]) -> None:
    """An ordinary child can be migrated, whether or not there is a worker."""
    assert candidate.refusal(child[0], None) is None
    assert candidate.refusal(child[0], 1_000_000) is None


def test_ourselves_and_our_ancestors() -> None:
    """The program that asks, its parent and the host's init are never candidates."""
    for pid in process.ancestors(os.getpid()):
        assert reason(pid) == (
            "OWN_TREE",
            "belongs to Sojourn's worker or is its ancestor; the worker cannot migrate itself",
        )


def test_the_worker_and_its_children(child: tuple[int, int]) -> None:
    """The worker and what runs below it are not candidates either."""
    for worker in (child[0], os.getpid()):
        assert reason(child[0], worker)[0] == "OWN_TREE"


def test_a_process_that_is_gone() -> None:
    """A free PID is refused, with a hint where to look."""
    with subprocess.Popen(["true"]) as gone:
        gone.wait()
    finding = candidate.refusal(gone.pid, None)
    assert finding
    assert (finding.code, finding.sentence) == (
        "PROCESS_GONE",
        f"There is no process {gone.pid} on this host.",
    )
    assert "sojourn ps" in finding.hint


def test_a_zombie() -> None:
    """A process that has ended and was not waited for has nothing left to migrate."""
    with subprocess.Popen(["true"]) as ended:
        eventually(lambda: process.stat(ended.pid).state == "Z")
        assert reason(ended.pid)[0] == "ZOMBIE"


@pytest.mark.parametrize("child", [TRACED], indirect=True)
def test_a_traced_process(child: tuple[int, int]) -> None:
    """A process with a debugger attached is refused, and the debugger is named."""
    code, why = reason(child[0])
    assert code == "TRACED"
    assert why.startswith(f"is traced by process {os.getpid()}")


@pytest.mark.parametrize("child", [THREADED], indirect=True)
def test_a_thread(child: tuple[int, int]) -> None:
    """The id of a thread is refused, and its process named; the process itself is a candidate."""
    assert reason(child[1]) == (
        "THREAD",
        f"is a thread of process {child[0]}; migrate that process",
    )
    assert candidate.refusal(child[0], None) is None


def test_a_kernel_thread() -> None:
    """A kernel thread is refused."""
    threads = [stat.pid for stat in process.everything() if stat.flags & KERNEL_THREAD]
    if not threads:
        pytest.skip("no thread of the kernel is visible in this PID namespace")
    assert reason(threads[-1])[0] == "KERNEL_THREAD"


def test_the_survey(child: tuple[int, int]) -> None:
    """The survey lists only roots, the largest first, and never a kernel thread."""
    found = candidate.survey(None)
    assert child[0] not in [root.pid for root in found]
    assert [root.memory_bytes for root in found] == sorted(
        (root.memory_bytes for root in found), reverse=True
    )
    assert all(process.stat(root.pid).parent <= 1 for root in found if process.exists(root.pid))
