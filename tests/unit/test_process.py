"""Processes as the kernel shows them: real children, identified, signalled, ended."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sojourn.errors import ProcessGone
from sojourn.model import Identity, Member
from sojourn.system import process, waits
from tests.conftest import eventually

#: A root with two children, one of which has a child itself.
FAMILY = "sleep 60 & sh -c 'sleep 60 & wait' & wait"

Child = subprocess.Popen[bytes]


@pytest.fixture
def family() -> Iterator[Child]:
    """Start four processes in a session of their own."""
    with subprocess.Popen(["sh", "-c", FAMILY], start_new_session=True) as root:
        eventually(lambda: len(process.tree(root.pid)) == 4)
        yield root
        os.killpg(root.pid, signal.SIGKILL)


@pytest.fixture
def sleeper() -> Iterator[Child]:
    """Start one process in a session of its own."""
    with subprocess.Popen(["sleep", "60"], start_new_session=True) as child:
        eventually(lambda: process.command_line(child.pid) == "sleep 60")
        yield child
        child.kill()


def _later(who: Identity) -> Identity:
    return dataclasses.replace(who, start_time=who.start_time + 1)


def _state(pid: int) -> str:
    return process.stat(pid).state


def test_tree(family: Child) -> None:
    """The tree is the root and all its descendants, parents before children, and no others."""
    pids = [member.identity.pid for member in process.tree(family.pid)]
    assert pids[0] == family.pid
    assert all(process.stat(pid).parent in pids[:place] for place, pid in enumerate(pids) if place)
    assert os.getpid() not in pids


def test_the_tree_of_a_process_that_is_gone(sleeper: Child) -> None:
    """A root that is gone has no tree."""
    sleeper.kill()
    sleeper.wait()
    with pytest.raises(ProcessGone, match=f"no process {sleeper.pid}"):
        process.tree(sleeper.pid)


def test_a_name_with_parentheses() -> None:
    """A name may contain blanks and parentheses, and must not shift the other fields."""
    code = (
        "import sys; open('/proc/self/comm', 'w').write(') R 1 (x'); print('go', flush=True); "
        "sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        stat = process.stat(child.pid)
        child.kill()
    assert (stat.name, stat.parent) == (") R 1 (x", os.getpid())


def test_is_alive(sleeper: Child) -> None:
    """Only this very process is alive: not another start time or boot, not a zombie."""
    who = process.identity(sleeper.pid)
    assert process.is_alive(who)
    assert not process.is_alive(_later(who))
    assert not process.is_alive(dataclasses.replace(who, boot_id="another boot"))
    sleeper.kill()
    eventually(lambda: _state(sleeper.pid) == "Z")
    assert not process.is_alive(who)
    sleeper.wait()
    assert not process.is_alive(who)


def test_the_clock_of_start_times(sleeper: Child) -> None:
    """A process that starts now has a start time of about now, in ticks since boot."""
    assert 0 <= process.ticks_since_boot() - process.identity(sleeper.pid).start_time < 100


def test_send_reaches_exactly_one(sleeper: Child) -> None:
    """A signal reaches the intended process; one with another start time is left alone."""
    who = process.identity(sleeper.pid)
    assert not process.send(_later(who), signal.SIGKILL)
    assert sleeper.poll() is None
    assert process.send(who, signal.SIGKILL)
    assert sleeper.wait(5) == -signal.SIGKILL
    assert not process.send(who, signal.SIGKILL)


def test_kill_counts_the_processes(family: Child) -> None:
    """The whole tree is killed; a PID that another process has now is not."""
    tree = process.tree(family.pid)
    stranger = Member(_later(process.identity(os.getpid())))
    assert process.kill([stranger, *tree]) == 4
    eventually(lambda: process.kill(tree) == 0)


def test_wake_leaves_the_stopped_stopped(family: Child) -> None:
    """After a freeze the processes that ran before run on, and no others."""
    tree = process.tree(family.pid)
    child = tree[1].identity
    process.send(child, signal.SIGSTOP)
    eventually(lambda: _state(child.pid) == "T")
    before = process.tree(family.pid)
    for member in before:
        process.send(member.identity, signal.SIGSTOP)
    eventually(lambda: all(member.stopped for member in process.tree(family.pid)))
    assert process.wake(before) == 3
    eventually(
        lambda: (
            [member.stopped for member in process.tree(family.pid)] == [False, True, False, False]
        )
    )


def test_carrying() -> None:
    """Processes and their children are found by a variable; a longer value is another one."""
    env = {"PATH": "/usr/bin:/bin", "SOJOURN_MIGRATION": "0123abcd"}
    with subprocess.Popen(
        ["sh", "-c", "sleep 60 & wait"], env=env, start_new_session=True
    ) as leader:
        eventually(
            lambda: (
                len(process.carrying(["SOJOURN_MIGRATION", "SOJOURN_OTHER"], "0123abcd"))
                == (2 if os.getuid() == 0 else 0)
            )
        )
        assert process.carrying(["SOJOURN_MIGRATION"], "0123") == []
        os.killpg(leader.pid, signal.SIGKILL)
    eventually(lambda: process.carrying(["SOJOURN_MIGRATION", "SOJOURN_OTHER"], "0123abcd") == [])


def test_memory_grows() -> None:
    """Memory that a child allocates and touches counts; a process that is gone has none."""
    code = (
        "import sys; sys.stdin.readline(); x = b'x' * 50_000_000; print('done', flush=True); "
        "sys.stdin.readline()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        members = process.tree(child.pid)
        before = process.memory_bytes(members)
        child.stdin.write(b"\n")
        child.stdin.flush()
        child.stdout.readline()
        assert process.memory_bytes(members) - before > 49_000_000
        child.kill()
        child.wait()
        assert process.memory_bytes(members) == 0


def test_ancestors(family: Child) -> None:
    """The ancestors of a process lead over its parent to the host's init."""
    grandchild = process.tree(family.pid)[-1].identity.pid
    line = process.ancestors(grandchild)
    assert line[0] == grandchild
    assert {family.pid, os.getpid(), 1} <= set(line)


def test_sockets() -> None:
    """Sockets among the descriptors are found; a process that is gone has none."""
    code = (
        "import socket, sys; a, b = socket.socketpair(); "
        "print(a.fileno(), b.fileno(), flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        assert set(map(int, child.stdout.readline().split())) <= set(process.sockets(child.pid))
        child.kill()
        child.wait()
        assert process.sockets(child.pid) == []


def test_descriptors_of_one_kind() -> None:
    """Links to a process's pipes are found and can be opened; a process that is gone has none."""
    with subprocess.Popen(["sleep", "60"], stdin=subprocess.PIPE) as child:
        assert child.stdin is not None
        ours = os.fstat(child.stdin.fileno()).st_ino
        assert ours in {link.stat().st_ino for link in process.descriptors(child.pid, "pipe:")}
        child.kill()
        child.wait()
        assert process.descriptors(child.pid, "pipe:") == []


def test_everything_contains_this_process() -> None:
    """The list of all processes contains this one, once."""
    assert [one.pid for one in process.everything()].count(os.getpid()) == 1


def test_a_pid_in_its_own_namespace() -> None:
    """It is the one that the process itself knows, and CRIU writes down."""
    assert waits.status(os.getpid()).inner_id == os.getpid()
    command = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "sleep", "100"]
    child = subprocess.Popen(command)
    try:
        children = f"/proc/{child.pid}/task/{child.pid}/children"
        eventually(lambda: Path(children).read_text())
        inner = int(Path(children).read_text())
        assert waits.status(inner).inner_id == 1
    finally:
        os.kill(inner, signal.SIGKILL)
        child.wait()
    with pytest.raises(ProcessGone):
        waits.status(inner)
