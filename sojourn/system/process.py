"""Processes and process trees, read from ``/proc`` (proc(5)), signalled by pidfd_open(2)."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import time
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from sojourn.errors import ProcessGone
from sojourn.model import Identity, Member
from sojourn.text import one_line

PROC = Path("/proc")

#: A variable in the environment of every process that works for a migration, so that such a process
#: can be found and ended, whoever started it.
MIGRATION_VARIABLE = "SOJOURN_MIGRATION"

#: Number of ``pidfd_getfd(2)`` on every architecture; Python has no function for it.
PIDFD_GETFD = 438

#: ``PF_KTHREAD`` in include/linux/sched.h: a kernel thread.
KERNEL_THREAD = 0x00200000

#: Lines of ``/proc/PID/status`` whose sum bounds what a dump of the process's memory can hold.
MEMORY_LINES = ("RssAnon:", "RssShmem:", "VmSwap:")


@dataclass(frozen=True)
class Stat:
    """The fields of ``/proc/PID/stat`` that are used (proc_pid_stat(5))."""

    pid: int
    name: str
    state: str
    parent: int
    group: int
    session: int
    flags: int
    start_time: int
    #: The device of the controlling terminal; 0 without one.
    terminal: int
    #: Where its code and its stack begin, which an exec places at new random addresses.
    places: tuple[str, str]


@cache
def boot_id() -> str:
    """Return the id of this boot: PIDs and start times are unique only within one boot."""
    return (PROC / "sys/kernel/random/boot_id").read_text().strip()


def stat(pid: int) -> Stat:
    """Read ``/proc/PID/stat``. Raises ProcessGone."""
    try:
        line = (PROC / str(pid) / "stat").read_text(errors="replace")
    # Opening fails with ENOENT if the process is gone; reading fails with ESRCH if it ended since.
    except (FileNotFoundError, ProcessLookupError):
        raise ProcessGone(f"There is no process {pid} on this host.") from None
    # The name is in parentheses, and may itself contain parentheses and blanks.
    name = line[line.index("(") + 1 : line.rindex(")")]
    rest = line[line.rindex(")") + 2 :].split()
    return Stat(
        pid=pid,
        name=name,
        state=rest[0],
        parent=int(rest[1]),
        group=int(rest[2]),
        session=int(rest[3]),
        terminal=int(rest[4]),
        flags=int(rest[6]),
        start_time=int(rest[19]),
        places=(rest[23], rest[25]),
    )


def program(pid: int) -> str:
    """Return the path of the program that a process runs; empty if it has none or is gone."""
    try:
        return str((PROC / str(pid) / "exe").readlink())
    except OSError:
        return ""


def is_fork_of(pid: int, parent: int) -> bool:
    """Return whether a process still runs what its parent ran when it forked, without an exec.

    Raises ProcessGone.
    """
    return stat(pid).places == stat(parent).places and program(pid) == program(parent) != ""


def identity(pid: int) -> Identity:
    """Return the process's identity, which is unique. Raises ProcessGone."""
    return Identity(pid, stat(pid).start_time, boot_id())


def exists(pid: int) -> bool:
    """Return whether any process has this PID now."""
    return (PROC / str(pid)).exists()


def ticks_since_boot() -> int:
    """Return the time on the clock of start times (proc_pid_stat(5), field 22)."""
    return int(time.clock_gettime(time.CLOCK_BOOTTIME) * os.sysconf("SC_CLK_TCK"))


def started(pid: int) -> float:
    """Return when a process was started at the earliest, in seconds since the epoch.

    It is later by two clock ticks at most: /proc counts in whole ones, and so do the times of
    files, with which it can be compared. Raises ProcessGone.
    """
    ticks = ticks_since_boot() - stat(pid).start_time + 2
    return time.time() - ticks / os.sysconf("SC_CLK_TCK")


def is_alive(who: Identity) -> bool:
    """Return whether exactly this process still exists and is not a zombie."""
    try:
        now = stat(who.pid)
    except ProcessGone:
        return False
    return (now.start_time, boot_id()) == (who.start_time, who.boot_id) and now.state not in "ZX"


def everything() -> Iterator[Stat]:
    """Yield all processes of this host; one that ends meanwhile is skipped."""
    for entry in PROC.iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(ProcessGone):
                yield stat(int(entry.name))


def tree(pid: int) -> list[Member]:
    """Return the process and all its descendants, parents first. Raises ProcessGone.

    It is complete only if the tree does not fork meanwhile, so the decisive reading is made while
    the tree is frozen.
    """
    children: dict[int, list[Stat]] = {}
    for other in everything():
        children.setdefault(other.parent, []).append(other)
    found = [stat(pid)]
    for parent in found:  # grows while it is walked
        found += children.get(parent.pid, [])
    return [
        Member(Identity(one.pid, one.start_time, boot_id()), stopped=one.state == "T")
        for one in found
    ]


def descent(roots: Iterable[Identity]) -> list[Member]:
    """Return the given processes that are alive, and all their descendants, without repetition."""
    found: dict[Identity, Member] = {}
    for root in roots:
        if is_alive(root):
            with contextlib.suppress(ProcessGone):
                found |= {member.identity: member for member in tree(root.pid)}
    return list(found.values())


def ancestors(pid: int) -> list[int]:
    """Return the PIDs of the process itself, its parent, and so on up to the host's init."""
    pids = []
    while pid > 0:
        pids.append(pid)
        pid = stat(pid).parent
    return pids


def memory_bytes(members: Iterable[Member]) -> int:
    """Return how many bytes of memory a dump of these processes can hold at most."""
    return sum(_memory_bytes(member.identity.pid) for member in members)


def _memory_bytes(pid: int) -> int:
    try:
        lines = (PROC / str(pid) / "status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(MEMORY_LINES))


def command_line(pid: int) -> str:
    """Return the process's command line as one line, or its name in brackets without one."""
    return one_line(" ".join(arguments(pid)).strip() or f"[{stat(pid).name}]")


def arguments(pid: int) -> list[str]:
    """Return the process's arguments, its program first. Raises ProcessGone."""
    try:
        line = (PROC / str(pid) / "cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        raise ProcessGone(f"There is no process {pid} on this host.") from None
    return line.decode(errors="replace").removesuffix("\0").split("\0")


def descriptors(pid: int, kind: str) -> list[Path]:
    """Return the links of descriptors of one kind, ``pipe:`` or ``socket:``; [] if it is gone."""
    links = PROC / str(pid) / "fd"
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return [link for link in links.iterdir() if _target(link).startswith(kind)]
    return []


@contextlib.contextmanager
def borrowed(pid: int, number: int) -> Iterator[int | None]:
    """Yield a copy of a process's descriptor; None if there is none.

    It shares the open file, unlike a descriptor from opening the link in ``/proc``.
    """
    pidfd = copy = -1
    with contextlib.suppress(ProcessLookupError):
        pidfd = os.pidfd_open(pid)
        # -1 if the descriptor was closed meanwhile, or if we may not trace the process
        # (pidfd_getfd(2)).
        copy = _libc.syscall(PIDFD_GETFD, pidfd, number, 0)
    try:
        yield copy if copy >= 0 else None
    finally:
        for descriptor in (pidfd, copy):
            if descriptor >= 0:
                os.close(descriptor)


def sockets(pid: int) -> list[int]:
    """Return the numbers of the process's descriptors that are sockets."""
    return [int(link.name) for link in descriptors(pid, "socket:")]


def _target(link: Path) -> str:
    try:
        return str(link.readlink())
    except FileNotFoundError:
        return ""


def carrying(variables: Collection[str], value: str) -> list[Identity]:
    """Return root's processes that have one of these variables, with this value.

    A program that is found by its environment need not be recorded before it is started, so the
    caller cannot die between the two.
    """
    wanted = {f"{variable}={value}".encode() for variable in variables}
    found = []
    for one in everything():
        with contextlib.suppress(OSError):
            directory = PROC / str(one.pid)
            # Any user can give a process of theirs such a variable: only root's count.
            if directory.stat().st_uid == 0 and not wanted.isdisjoint(
                (directory / "environ").read_bytes().split(b"\0")
            ):
                found.append(Identity(one.pid, one.start_time, boot_id()))
    return [who for who in found if is_alive(who)]


def send(who: Identity, number: signal.Signals) -> bool:
    """Signal exactly this process; False if it is gone."""
    # The pidfd is opened before the identity is checked, so a reused PID can never be signalled.
    try:
        pidfd = os.pidfd_open(who.pid)
    except ProcessLookupError:
        return False
    try:
        if not is_alive(who):
            return False
        signal.pidfd_send_signal(pidfd, number)
    except ProcessLookupError:
        return False
    finally:
        os.close(pidfd)
    return True


def kill(members: Iterable[Member]) -> int:
    """Kill exactly these processes; return how many still existed."""
    return sum(send(member.identity, signal.SIGKILL) for member in members)


def wake(members: Iterable[Member]) -> int:
    """Resume the processes that ran before the freeze; return how many. Others stay stopped."""
    return sum(send(member.identity, signal.SIGCONT) for member in members if not member.stopped)


_libc = ctypes.CDLL(None, use_errno=True)
