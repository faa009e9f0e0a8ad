"""Whether a process can be migrated at all: it exists, is a program, and is not Sojourn's own."""

from __future__ import annotations

import contextlib
import os
import pwd
from dataclasses import dataclass
from pathlib import Path

from sojourn.cluster.selector import Process
from sojourn.errors import ProcessGone
from sojourn.model import MAX_FREEZE_S
from sojourn.preflight import supervisor
from sojourn.preflight.finding import Finding, blocks
from sojourn.system import process
from sojourn.system.process import KERNEL_THREAD, Stat


def refusal(pid: int, worker: int | None) -> Finding | None:
    """Return why a process cannot be migrated at all; ``worker`` is the PID of the worker here."""
    try:
        stat = process.stat(pid)
        ancestors = process.ancestors(pid)
        why_not = _why_not(stat) or _why_ours(pid, ancestors, worker)
    except ProcessGone as gone:
        return blocks(
            "PROCESS_GONE", gone.message, "It may have ended: look for it with `sojourn ps`."
        )
    return blocks(why_not[0], f"Process {pid} ({stat.name}) {why_not[1]}.") if why_not else None


@dataclass(frozen=True)
class Candidate:
    """A process as ``sojourn ps`` shows it, with the figures of its whole tree.

    ``verdict`` is the reason why it cannot be migrated, and empty if there is none. If
    ``stoppable``, that is a supervisor, and --stop-unit takes care of it. ``started`` is in seconds
    since the epoch.
    """

    pid: int
    command: str
    user: int
    processes: int
    memory_bytes: int
    sockets: int
    verdict: str
    stoppable: bool = False
    started: float = 0


def survey(worker: int | None) -> list[Candidate]:
    """Return the roots of this host's process trees, the largest first.

    Init and kernel threads are left out. A root is a child of init, or has no parent.
    """
    found = []
    for stat in process.everything():
        with contextlib.suppress(ProcessGone, FileNotFoundError):
            if stat.parent <= 1 and stat.pid != 1 and not stat.flags & KERNEL_THREAD:
                found.append(_candidate(stat, worker))
    return sorted(found, key=lambda root: root.memory_bytes, reverse=True)


def _candidate(stat: Stat, worker: int | None) -> Candidate:
    members = process.tree(stat.pid)
    why_not = _why_not(stat) or _why_ours(stat.pid, process.ancestors(stat.pid), worker)
    pids = [member.identity.pid for member in members]
    supervised = None if why_not else supervisor.of(stat.pid, pids, MAX_FREEZE_S)
    return Candidate(
        pid=stat.pid,
        command=process.command_line(stat.pid),
        user=Path(f"/proc/{stat.pid}").stat().st_uid,
        processes=len(members),
        memory_bytes=process.memory_bytes(members),
        sockets=sum(len(process.sockets(member.identity.pid)) for member in members),
        verdict=why_not[1] if why_not else supervised.verdict if supervised else "",
        stoppable=supervised is not None and supervised.stop is not None,
        started=process.started(stat.pid),
    )


def _why_not(stat: Stat) -> tuple[str, str] | None:
    if stat.flags & KERNEL_THREAD:
        return "KERNEL_THREAD", "is a kernel thread, which cannot be migrated"
    if stat.state in "ZX":
        return (
            "ZOMBIE",
            "is a zombie: it has ended, and there is nothing left to migrate",
        )
    # ``/proc/TID`` can be opened for any thread, although it is not listed (proc(5)), so the number
    # of a thread can be taken for a PID.
    leader, tracer = _status(stat.pid, "Tgid:"), _status(stat.pid, "TracerPid:")
    if leader != stat.pid:
        return "THREAD", f"is a thread of process {leader}; migrate that process"
    if tracer:
        return (
            "TRACED",
            f"is traced by process {tracer}, perhaps a debugger; CRIU must be the only tracer",
        )
    return None


def is_ours(pid: int, worker: int | None) -> bool:
    """Return whether a process is this host's worker, its ancestor or its descendant."""
    with contextlib.suppress(ProcessGone):
        return worker in process.ancestors(pid) or (
            worker is not None and pid in process.ancestors(worker)
        )
    return False


def _why_ours(pid: int, ancestors: list[int], worker: int | None) -> tuple[str, str] | None:
    if pid in process.ancestors(os.getpid()) or worker in ancestors:
        return (
            "OWN_TREE",
            "belongs to Sojourn's worker or is its ancestor; the worker cannot migrate itself",
        )
    return None


def _status(pid: int, key: str) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text(errors="replace").splitlines()
    except (FileNotFoundError, ProcessLookupError):
        raise ProcessGone(f"There is no process {pid} on this host.") from None
    return next(int(line.split()[1]) for line in lines if line.startswith(key))


def members_of(pid: int) -> list[Process]:
    """Return what a selector matches, for all processes of a tree that do not end meanwhile."""
    found = []
    with contextlib.suppress(ProcessGone):
        for member in process.tree(pid):
            with contextlib.suppress(ProcessGone, FileNotFoundError, ProcessLookupError):
                found.append(_seen(member.identity.pid))
    return found


def _seen(pid: int) -> Process:
    place = Path(f"/proc/{pid}")
    user = place.stat().st_uid
    groups = (place / "cgroup").read_text().splitlines()
    # The line of cgroup version 2 begins with ``0:`` and names no controller (cgroups(7)).
    unified = next((line.split(":", 2)[2] for line in groups if line.startswith("0:")), "/")
    return Process(pid, process.command_line(pid), user, _user_name(user), unified)


def _user_name(user: int) -> str:
    try:
        return pwd.getpwuid(user).pw_name
    except KeyError:
        return ""
