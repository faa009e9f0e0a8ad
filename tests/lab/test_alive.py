"""The process that arrived lives: nothing that CRIU restores or starts ends it at once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from lab.host import Host, within
from tests.lab.site import Site, left_behind

pytestmark = pytest.mark.lab

#: A parent whose child asks for SIGKILL at its end; both go on until they are killed.
FAMILY = """
import ctypes, os, time
if os.fork() == 0:
    ctypes.CDLL(None).prctl(1, 9)  # PR_SET_PDEATHSIG
while True:
    time.sleep(0.05)
"""

#: The root itself has one, set by one of its threads only: the kernel heeds each thread's.
THREAD = """
import ctypes, threading, time
def rest():
    ctypes.CDLL(None).prctl(1, 15)
    time.sleep(10_000)
threading.Thread(target=rest, daemon=True).start()
while True:
    time.sleep(0.05)
"""


#: Starts a program as the child of a parent that lives on, and in a session of its own.
BELOW_A_PARENT = "setpriv --pdeathsig {} setsid sleep 10000 & wait"


#: Ends as soon as it finds itself on another host.
STAYS_AT_HOME = """
import os, time
home = os.uname().nodename
while os.uname().nodename == home:
    time.sleep(0.001)
{}
"""


@dataclass(frozen=True)
class Orphan:
    """A program that asks for a signal at its parent's end.

    ``child``: its root is the child of what is launched; ``processes`` is how many its tree has.
    """

    name: str
    command: tuple[str, ...]
    processes: int = 1
    child: bool = False


ORPHANS = [
    Orphan("setpriv", ("sh", "-c", BELOW_A_PARENT.format("KILL")), child=True),
    Orphan("another signal", ("sh", "-c", BELOW_A_PARENT.format("USR1")), child=True),
    Orphan("a thread", ("python3", "-c", THREAD)),
    Orphan("unshare", ("unshare", "--fork", "--kill-child", "sleep", "10000"), 2),
    Orphan("a child", ("python3", "-c", FAMILY), 2),
]


@pytest.fixture(params=ORPHANS, ids=lambda orphan: orphan.name)
def orphan(request: pytest.FixtureRequest) -> Orphan:
    """Return one program after another."""
    chosen: Orphan = request.param
    return chosen


@pytest.fixture
def pid(site: Site, orphan: Orphan) -> Iterator[int]:
    """Start the program on alpha; return its PID."""
    alpha = site.host("alpha")
    launched = alpha.launch(list(orphan.command))
    assert within(10, lambda: len(_below(alpha, launched)) == orphan.processes - (not orphan.child))
    root = _below(alpha, launched)[0] if orphan.child else launched
    assert within(10, lambda: _count(alpha, root) == orphan.processes)
    yield root
    for name in ("alpha", "beta"):
        site.host(name).run(["kill", "-KILL", str(root)], check=False)


def _below(host: Host, parent: int) -> list[int]:
    """Return the children of a process on a host."""
    listed = host.run(["ps", "-o", "pid=", "--ppid", str(parent)], check=False)
    return [int(pid) for pid in listed.stdout.split()]


def _count(host: Host, root: int) -> int:
    """Return how many processes of the tree live on a host."""
    listed = host.run(["ps", "-o", "pid=", "--pid", str(root), "--ppid", str(root)], check=False)
    return len(listed.stdout.split())


def test_a_parent_death_signal(site: Site, orphan: Orphan, pid: int) -> None:
    """CRIU restores it and is the parent for an instant: the tree lives on all the same, twice."""
    for source, destination in (("alpha", "beta"), ("beta", "alpha")):
        ended = site.migrate(pid, source, destination)
        assert ended.code == 0, ended.answer["failure"]
        there = site.host(destination)
        assert not within(1, lambda there=there: _count(there, pid) != orphan.processes)
        assert left_behind(there) == []


def test_a_child_keeps_it(site: Site) -> None:
    """A process whose parent came along still ends with it."""
    alpha, beta = site.host("alpha"), site.host("beta")
    root = alpha.launch(["python3", "-c", FAMILY])
    assert within(10, lambda: _count(alpha, root) == 2)
    assert site.migrate(root, "alpha", "beta").code == 0
    (child,) = beta.run(["ps", "-o", "pid=", "--ppid", str(root)]).stdout.split()
    beta.run(["kill", "-KILL", str(root)])
    assert within(5, lambda: beta.run(["kill", "-0", child], check=False).returncode != 0)


@pytest.mark.parametrize(
    ("last_act", "how"),
    [("os._exit(3)", "exit code 3"), ("os.kill(os.getpid(), 6)", "signal 6")],
)
def test_a_process_that_ends_at_once(site: Site, last_act: str, how: str) -> None:
    """It is not reported as running: its state, its exit code and its cause are its own."""
    alpha, beta = site.host("alpha"), site.host("beta")
    pid = alpha.launch(["python3", "-c", STAYS_AT_HOME.format(last_act)])
    ended = site.migrate(pid, "alpha", "beta")
    answer = ended.answer
    assert (ended.code, answer["state"], answer["owner"]) == (17, "arrived and ended", None)
    assert answer["ended"]["by"] == how
    assert 0 <= answer["ended"]["after_ms"] < 1000
    assert (
        f"arrived on beta, and ended {answer['ended']['after_ms']:.0f} ms later by {how}"
        in (answer["failure"]["message"])
    )
    for host in (alpha, beta):
        assert host.run(["kill", "-0", str(pid)], check=False).returncode != 0
        assert left_behind(host) == []


def test_a_process_that_lives_is_confirmed(site: Site) -> None:
    """The step that looks for life is one of the steps that people see."""
    pid = site.host("alpha").launch(["sleep", "10000"])
    ended = site.migrate(pid, "alpha", "beta")
    assert (ended.code, ended.answer["ended"]) == (0, None)
    outcomes = {step["name"]: step["outcome"] for step in ended.answer["steps"]}
    assert outcomes["confirm"] == f"process {pid} lives"
    site.host("beta").run(["kill", "-KILL", str(pid)])
