"""PIDs on the destination: those of the tree's processes, threads, groups and sessions."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator
from pathlib import Path

from sojourn.errors import ProcessGone
from sojourn.preflight.finding import Finding, blocks
from sojourn.preflight.scan import Tree
from sojourn.system import process

#: How many taken PIDs are named, in one finding each.
SHOWN = 5

HINT = (
    "Choose another destination, or start the program in a PID namespace: "
    "`unshare --fork --pid setsid CMD`."
)


def needed(tree: Tree, *, shell_job: bool) -> list[int]:
    """Return the PIDs that the restore takes; none for a tree in a PID namespace of its own.

    A group or a session keeps its number when its leader is gone. With ``shell_job`` the root's
    session, and its group unless the root leads it, become those of the restoring CRIU.
    """
    if tree.root.in_own_namespace:
        return []
    inherited = {tree.root.session, tree.root.group} - {tree.root.own_pid} if shell_job else set()
    tasks = [task for task in tree.tasks if not task.in_own_namespace]
    groups = {number for task in tasks for number in (task.group, task.session)} - inherited
    return sorted({tid for task in tasks for tid in task.ids} | groups - {0})


def taken(wanted: Collection[int]) -> Iterator[Finding]:
    """Yield which of these PIDs are taken on this host, and by which process."""
    owners = owned(wanted)
    for pid in sorted(owners)[:SHOWN]:
        yield blocks("PID_TAKEN", f"PID {pid} is taken by {owners[pid]}.", HINT)
    if len(owners) > SHOWN:
        yield blocks("PID_TAKEN", f"{len(owners) - SHOWN} more PIDs are taken.", HINT)


def out_of_range(wanted: Collection[int]) -> Iterator[Finding]:
    """Yield a finding if the largest PID is too large for this host."""
    limit = int(Path("/proc/sys/kernel/pid_max").read_text())
    if wanted and max(wanted) >= limit:
        yield blocks(
            "PID_RANGE",
            f"PID {max(wanted)} is not below kernel.pid_max, {limit}.",
            f"Run `sysctl kernel.pid_max={max(wanted) + 1}` there.",
        )


def owned(wanted: Collection[int]) -> dict[int, str]:
    """Return those PIDs that are taken here, with a description of the owner.

    A number stays taken while it is that of a process, of a thread, or of a group or session with
    members.
    """
    looked_for = set(wanted)
    owners = {}
    # The process itself comes last and so describes a number that is its group and session too.
    for stat in process.everything() if looked_for else ():
        for number, what in (
            (stat.session, "session"),
            (stat.group, "process group"),
            (stat.pid, ""),
        ):
            if number in looked_for:
                owners[number] = (
                    f"the {what} of process {stat.pid} ({stat.name})"
                    if what
                    else _process(stat.pid)
                )
    # ``/proc`` does not list threads, but finds them by their numbers.
    for number in looked_for - owners.keys():
        if process.exists(number):
            owners[number] = f"a thread of {_leader(number)}"
    return owners


def _process(pid: int) -> str:
    with contextlib.suppress(ProcessGone):
        return f"process {pid}: {process.command_line(pid)[:60]}"
    return f"process {pid}"


def _leader(thread: int) -> str:
    with contextlib.suppress(OSError, StopIteration):
        lines = Path(f"/proc/{thread}/status").read_text(errors="replace").splitlines()
        return _process(next(int(line.split()[1]) for line in lines if line.startswith("Tgid:")))
    return "a process that has just ended"
