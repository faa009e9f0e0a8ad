"""The tree's processes themselves, on the source: tracers, sleeps that nothing ends, sessions, namespaces."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from shutil import which

from sojourn.model import Plan
from sojourn.preflight.finding import Finding, blocks, named, needs_option
from sojourn.preflight.scan import NAMESPACES, Tree

#: How long a thread must sleep uninterruptibly until that is not called a moment of disk activity, in seconds.
UNINTERRUPTIBLE_S = 0.3
LOOK_S = 0.02

#: Namespaces that only the whole tree can have for itself; the others CRIU knows in any number.
WHOLE_TREE = ("pid", "ipc", "uts", "user", "cgroup", "time")


def check(tree: Tree, plan: Plan, ours: dict[str, str]) -> Iterator[Finding]:
    """Yield what speaks against the processes; ``ours`` are the namespaces of this host's worker."""
    yield from _traced(tree)
    yield from _uninterruptible(tree)
    yield from _sessions(tree, plan)
    yield from _namespaces(tree, ours)


def _traced(tree: Tree) -> Iterator[Finding]:
    for task in tree.tasks:
        for tracer in sorted(set(task.tracers.values())):
            yield blocks(
                "TRACED",
                f"Process {task.pid} ({task.name}) is traced by process {tracer}; CRIU must be the only tracer.",
                f"End the debugger, process {tracer}.",
            )


def _uninterruptible(tree: Tree) -> Iterator[Finding]:
    """Name the threads that CRIU could not stop. Disk activity is over in a moment, so it is looked at again."""
    stuck = {(task.pid, tid) for task in tree.tasks for tid, state in task.states.items() if state == "D"}
    until = time.monotonic() + UNINTERRUPTIBLE_S
    while stuck and time.monotonic() < until:
        time.sleep(LOOK_S)
        stuck = {(pid, tid) for pid, tid in stuck if _state(pid, tid) == "D"}
    for pid, tid in sorted(stuck):
        yield blocks(
            "UNINTERRUPTIBLE",
            f"Thread {tid} of process {pid} is in uninterruptible sleep; CRIU could not stop it.",
            "Wait until its disk, its network file system or the child that it started by vfork is done.",
        )


def _state(pid: int, tid: int) -> str:
    try:
        line = Path(f"/proc/{pid}/task/{tid}/stat").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return ""
    return line[line.rindex(")") + 2]


def _sessions(tree: Tree, plan: Plan) -> Iterator[Finding]:
    root = tree.root
    outside = [task.pid for task in tree.tasks if task.session == 0]
    if outside:
        yield blocks(
            "SHELL_JOB",
            f"The session leader of process {named(outside)} is outside of its PID namespace.",
            "Start the program with setsid.",
        )
    elif root.session != root.own_pid:
        yield needs_option(
            "SHELL_JOB",
            f"Process {root.pid} ({root.name}) belongs to session {root.session}, whose leader does not move along.",
            "--shell-job",
            given=plan.shell_job,
        )


def _namespaces(tree: Tree, ours: dict[str, str]) -> Iterator[Finding]:
    root = tree.root
    for name in NAMESPACES:
        # A namespace that the root shares with CRIU, or one that only the whole tree can have, is that of all.
        alone = name in WHOLE_TREE or root.namespaces.get(name) == ours.get(name)
        own = [task for task in tree.tasks if task.namespaces.get(name) not in {None, root.namespaces.get(name)}]
        if own and alone:
            yield blocks(
                "NAMESPACE",
                f"Process {own[0].pid} ({own[0].name}) has a {name} namespace of its own inside the tree.",
                "Migrate the process that is the root of that namespace by itself.",
            )
    if root.namespaces.get("mnt") != ours.get("mnt"):
        yield blocks(
            "NAMESPACE",
            f"Process {root.pid} ({root.name}) has a mount namespace of its own, which can not be rebuilt elsewhere.",
            "Start it without mounts of its own: `unshare --fork --pid`, without --mount or --mount-proc.",
        )
    elif root.namespaces.get("user") != ours.get("user"):
        # CRIU mounts a /proc of its own for the restore, which a user namespace may not do to the host's mounts.
        yield blocks(
            "NAMESPACE",
            f"Process {root.pid} ({root.name}) has a user namespace of its own, but not the mounts that belong to it.",
            "Start it without a user namespace.",
        )
    elif root.namespaces.get("net") != ours.get("net") and not which("iptables-restore"):
        yield blocks(
            "NAMESPACE",
            f"Process {root.pid} ({root.name}) has a network namespace of its own; CRIU needs iptables-restore for it.",
            "Install iptables on both hosts.",
        )
    elif root.in_own_namespace and root.own_pid != 1:
        yield blocks(
            "NAMESPACE",
            f"Process {root.pid} ({root.name}) lives in a PID namespace whose first process is not part of the tree.",
            "Migrate the first process of that namespace.",
        )
