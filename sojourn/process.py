"""Processes and trees of processes, read from ``/proc`` (proc(5)) and signalled through pidfds (pidfd_open(2))."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from sojourn.errors import ProcessGone
from sojourn.model import Identity, Member

PROC = Path("/proc")

#: Carried by every process that works for a migration, so that it can be found and ended whoever started it.
MIGRATION_VARIABLE = "SOJOURN_MIGRATION"

#: ``pidfd_getfd(2)``, the same number on every architecture; Python has no name for it.
PIDFD_GETFD = 438

#: ``PF_KTHREAD`` in include/linux/sched.h: a thread of the kernel itself.
KERNEL_THREAD = 0x00200000

#: Lines of ``/proc/PID/status`` whose sum bounds what a dump of the process's memory can hold.
MEMORY_LINES = ("RssAnon:", "RssShmem:", "VmSwap:")


@dataclass(frozen=True)
class Stat:
    """What ``/proc/PID/stat`` says of a process."""

    pid: int
    name: str
    state: str
    parent: int
    group: int
    session: int
    flags: int
    start_time: int


@cache
def boot_id() -> str:
    """Return the id of this boot: PIDs and start times mean nothing without it."""
    return (PROC / "sys/kernel/random/boot_id").read_text().strip()


def stat(pid: int) -> Stat:
    """Read a process's line. Raises ProcessGone if there is none."""
    try:
        line = (PROC / str(pid) / "stat").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        raise ProcessGone(f"There is no process {pid} on this host.") from None
    # The name stands in parentheses and may itself contain any of them, and blanks.
    name = line[line.index("(") + 1 : line.rindex(")")]
    rest = line[line.rindex(")") + 2 :].split()
    return Stat(
        pid=pid,
        name=name,
        state=rest[0],
        parent=int(rest[1]),
        group=int(rest[2]),
        session=int(rest[3]),
        flags=int(rest[6]),
        start_time=int(rest[19]),
    )


def identity(pid: int) -> Identity:
    """Return who the process is, for certain. Raises ProcessGone."""
    return Identity(pid, stat(pid).start_time, boot_id())


def exists(pid: int) -> bool:
    """Whether any process has this PID now."""
    return (PROC / str(pid)).exists()


def ticks_since_boot() -> int:
    """Return the time on the clock that start times are read from (proc_pid_stat(5), field 22)."""
    return int(time.clock_gettime(time.CLOCK_BOOTTIME) * os.sysconf("SC_CLK_TCK"))


def is_alive(who: Identity) -> bool:
    """Whether exactly this process still exists and is not a zombie."""
    try:
        now = stat(who.pid)
    except ProcessGone:
        return False
    return (now.start_time, boot_id()) == (who.start_time, who.boot_id) and now.state not in "ZX"


def everything() -> Iterator[Stat]:
    """Read all processes of this host; one that ends meanwhile is passed over."""
    for entry in PROC.iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(ProcessGone):
                yield stat(int(entry.name))


def tree(pid: int) -> list[Member]:
    """Return the process and all its descendants, parents first. Raises ProcessGone if the root is gone.

    Whole only if the tree does not fork meanwhile, so the one that counts is read while it is frozen.
    """
    children: dict[int, list[Stat]] = {}
    for each in everything():
        children.setdefault(each.parent, []).append(each)
    found = [stat(pid)]
    for each in found:  # grows while it is walked
        found += children.get(each.pid, [])
    return [Member(Identity(each.pid, each.start_time, boot_id()), stopped=each.state == "T") for each in found]


def descent(roots: Iterable[Identity]) -> list[Member]:
    """Return those of the given processes that are alive, with all their descendants, each once."""
    found: dict[Identity, Member] = {}
    for root in roots:
        if is_alive(root):
            with contextlib.suppress(ProcessGone):
                found |= {member.identity: member for member in tree(root.pid)}
    return list(found.values())


def ancestors(pid: int) -> list[int]:
    """Return the PIDs of the process itself, its parent, and so on up to the host's init."""
    line = []
    while pid > 0:
        line.append(pid)
        pid = stat(pid).parent
    return line


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
    """Return the process's command line, or its name in brackets where it has none."""
    try:
        words = (PROC / str(pid) / "cmdline").read_bytes().split(b"\0")
    except (FileNotFoundError, ProcessLookupError):
        raise ProcessGone(f"There is no process {pid} on this host.") from None
    return b" ".join(words).decode(errors="replace").strip() or f"[{stat(pid).name}]"


def descriptors(pid: int, kind: str) -> list[Path]:
    """Return the links of the process's descriptors of one kind, ``pipe:`` or ``socket:``; empty if it is gone."""
    links = PROC / str(pid) / "fd"
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return [link for link in links.iterdir() if _target(link).startswith(kind)]
    return []


@contextlib.contextmanager
def borrowed(pid: int, number: int) -> Iterator[int | None]:
    """Hand out a copy of a process's descriptor; None if there is none. Nothing is opened anew, as by its path."""
    pidfd = copy = -1
    with contextlib.suppress(ProcessLookupError):
        pidfd = os.pidfd_open(pid)
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


def carrying(variable: str, value: str) -> list[Identity]:
    """Return root's processes that were started with a variable of the environment set so.

    Found by what they carry, helpers need not be written down before they are started: nobody can die in between.
    """
    wanted = f"{variable}={value}".encode()
    found = []
    for each in everything():
        with contextlib.suppress(OSError):
            directory = PROC / str(each.pid)
            if directory.stat().st_uid == 0 and wanted in (directory / "environ").read_bytes().split(b"\0"):
                found.append(Identity(each.pid, each.start_time, boot_id()))
    return [who for who in found if is_alive(who)]


def send(who: Identity, number: signal.Signals) -> bool:
    """Signal exactly this process; False if it is gone. The pidfd keeps a reused PID from being hit."""
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
    """Kill exactly these processes; return how many were still there."""
    return sum(send(member.identity, signal.SIGKILL) for member in members)


def wake(members: Iterable[Member]) -> int:
    """Let those processes run on that ran before; the ones that were stopped before stay so."""
    return sum(send(member.identity, signal.SIGCONT) for member in members if not member.stopped)


_libc = ctypes.CDLL(None, use_errno=True)
