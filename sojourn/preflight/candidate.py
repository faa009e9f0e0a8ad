"""Whether a process can be a candidate at all: it exists, it is a program, and it is not one of ours."""

from __future__ import annotations

import contextlib
import os
import pwd
from dataclasses import dataclass
from pathlib import Path

from sojourn import process
from sojourn.errors import ProcessGone
from sojourn.preflight.finding import Finding, blocks
from sojourn.process import KERNEL_THREAD, Stat
from sojourn.selector import Process


def refusal(pid: int, worker: int | None) -> Finding | None:
    """Return why a process must not or can not be migrated at all; ``worker`` is the PID of this host's worker."""
    try:
        stat = process.stat(pid)
        line = process.ancestors(pid)
        why_not = _why_not(stat) or _why_ours(pid, line, worker)
    except ProcessGone as gone:
        return blocks("PROCESS_GONE", gone.message, "It may have ended: look again with `sojourn ps`.")
    return blocks(why_not[0], f"Process {pid} ({stat.name}) {why_not[1]}.") if why_not else None


@dataclass(frozen=True)
class Candidate:
    """A process as ``sojourn ps`` shows it, with its whole tree; ``verdict`` is empty if nothing speaks against it."""

    pid: int
    command: str
    user: int
    processes: int
    memory_bytes: int
    sockets: int
    verdict: str


def survey(worker: int | None) -> list[Candidate]:
    """Return the roots of this host's trees of programs, the largest first; kernel threads and our own are left out."""
    found = []
    for stat in process.everything():
        with contextlib.suppress(ProcessGone, FileNotFoundError):
            if stat.parent <= 1 and stat.pid != 1 and not stat.flags & KERNEL_THREAD:
                found.append(_candidate(stat, worker))
    return sorted(found, key=lambda each: each.memory_bytes, reverse=True)


def _candidate(stat: Stat, worker: int | None) -> Candidate:
    members = process.tree(stat.pid)
    why_not = _why_not(stat) or _why_ours(stat.pid, process.ancestors(stat.pid), worker)
    return Candidate(
        pid=stat.pid,
        command=process.command_line(stat.pid),
        user=Path(f"/proc/{stat.pid}").stat().st_uid,
        processes=len(members),
        memory_bytes=process.memory_bytes(members),
        sockets=sum(len(process.sockets(member.identity.pid)) for member in members),
        verdict=why_not[1] if why_not else "",
    )


def _why_not(stat: Stat) -> tuple[str, str] | None:
    if stat.flags & KERNEL_THREAD:
        return "KERNEL_THREAD", "is a thread of the kernel; it can not be migrated"
    if stat.state in "ZX":
        return "ZOMBIE", "has already ended and waits for its parent to notice; there is nothing left to migrate"
    leader, tracer = _status(stat.pid, "Tgid:"), _status(stat.pid, "TracerPid:")
    if leader != stat.pid:
        return "THREAD", f"is a thread of process {leader}; migrate that one"
    if tracer:
        return "TRACED", f"is traced by process {tracer}, a debugger perhaps; CRIU must be the only tracer"
    return None


def is_ours(pid: int, worker: int | None) -> bool:
    """Whether a tree is that of this host's worker, or holds it: nobody wants to move that one."""
    with contextlib.suppress(ProcessGone):
        return worker in process.ancestors(pid) or (worker is not None and pid in process.ancestors(worker))
    return False


def _why_ours(pid: int, line: list[int], worker: int | None) -> tuple[str, str] | None:
    if pid in process.ancestors(os.getpid()) or worker in line:
        return "OWN_TREE", "is Sojourn's own worker or one of its ancestors; it can not migrate itself"
    return None


def _status(pid: int, key: str) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text(errors="replace").splitlines()
    except (FileNotFoundError, ProcessLookupError):
        raise ProcessGone(f"There is no process {pid} on this host.") from None
    return next(int(line.split()[1]) for line in lines if line.startswith(key))


def members_of(pid: int) -> list[Process]:
    """Return what a selector looks at, for each process of a tree; those that end meanwhile are left out."""
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
    unified = next((line.split(":", 2)[2] for line in groups if line.startswith("0:")), "/")
    return Process(pid, process.command_line(pid), user, _user_name(user), unified)


def _user_name(user: int) -> str:
    try:
        return pwd.getpwuid(user).pw_name
    except KeyError:
        return ""
