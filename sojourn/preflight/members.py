"""The tree's processes, on the source: tracers, uninterruptible sleep, sessions, namespaces."""

from __future__ import annotations

import time
from collections.abc import Iterator
from shutil import which

from sojourn.model import Plan
from sojourn.preflight.finding import Finding, blocks, named, needs_option
from sojourn.preflight.scan import NAMESPACES, Tree
from sojourn.system import waits

#: How long, in seconds, a thread must be in uninterruptible sleep to be reported: ordinary disk
#: access takes less. And how often it is looked at.
UNINTERRUPTIBLE_S = 0.3
LOOK_S = 0.02

#: Namespaces that CRIU supports only if the whole tree shares them; of others there may be several.
WHOLE_TREE = ("pid", "ipc", "uts", "user", "cgroup", "time")


def check(tree: Tree, plan: Plan, ours: dict[str, str]) -> Iterator[Finding]:
    """Yield the findings for the processes; ``ours`` are the namespaces of this host's worker."""
    yield from _traced(tree)
    yield from _uninterruptible(tree)
    yield from _sessions(tree, plan)
    yield from _namespaces(tree, ours)


def _traced(tree: Tree) -> Iterator[Finding]:
    for task in tree.tasks:
        for tracer in sorted(set(task.tracers.values())):
            yield blocks(
                "TRACED",
                f"Process {task.pid} ({task.name}) is traced by process {tracer}; CRIU must be the "
                "only tracer.",
                f"End the debugger, process {tracer}.",
            )


def _uninterruptible(tree: Tree) -> Iterator[Finding]:
    """Yield the threads that CRIU could not stop, and that stay so for ``UNINTERRUPTIBLE_S``."""
    stuck = {
        (task.pid, tid) for task in tree.tasks for tid, state in task.states.items() if state == "D"
    }
    until = time.monotonic() + UNINTERRUPTIBLE_S
    while stuck and time.monotonic() < until:
        time.sleep(LOOK_S)
        stuck = {(pid, tid) for pid, tid in stuck if waits.state(tid) == "D"}
    for pid, tid in sorted(stuck):
        yield blocks(
            "UNINTERRUPTIBLE",
            f"Thread {tid} of process {pid} is in uninterruptible sleep; CRIU could not stop it.",
            "Wait until its disk, its network file system or the child that it started with "
            "vfork has finished.",
        )


def _sessions(tree: Tree, plan: Plan) -> Iterator[Finding]:
    root = tree.root
    # The kernel shows 0 for a session whose leader has no number in the process's PID namespace.
    outside = [task.pid for task in tree.tasks if task.session == 0]
    if outside:
        yield blocks(
            "SHELL_JOB",
            f"The session leader of process {named(outside)} is outside its PID namespace.",
            "Start the program with `setsid CMD`.",
        )
    elif root.session != root.own_pid:
        yield needs_option(
            "SHELL_JOB",
            f"Process {root.pid} ({root.name}) belongs to session {root.session}, whose leader is "
            "not part of the tree.",
            "--shell-job",
            given=plan.shell_job,
        )


def _namespaces(tree: Tree, ours: dict[str, str]) -> Iterator[Finding]:
    root = tree.root
    for name in NAMESPACES:
        # CRIU does not restore a namespace that the root shares with it, and of some kinds it
        # restores only one for the whole tree: in both cases no other process may have its own.
        shared = name in WHOLE_TREE or root.namespaces.get(name) == ours.get(name)
        own = [
            task
            for task in tree.tasks
            if task.namespaces.get(name) not in {None, root.namespaces.get(name)}
        ]
        if own and shared:
            yield blocks(
                "NAMESPACE",
                f"Process {own[0].pid} ({own[0].name}) has a {name} namespace of its own inside "
                "the tree.",
                "Migrate the process that is the root of that namespace by itself.",
            )
    if root.namespaces.get("mnt") != ours.get("mnt"):
        yield blocks(
            "NAMESPACE",
            f"Process {root.pid} ({root.name}) has a mount namespace of its own, which cannot be "
            "restored on another host.",
            "Start it without mounts of its own: `unshare --fork --pid`, without --mount or "
            "--mount-proc.",
        )
    elif root.namespaces.get("user") != ours.get("user"):
        # CRIU mounts a /proc of its own for the restore, and a process in a user namespace may not
        # mount anything in the host's mount namespace.
        yield blocks(
            "NAMESPACE",
            f"Process {root.pid} ({root.name}) has a user namespace of its own, but no mount "
            "namespace that belongs to it.",
            "Start it without a user namespace.",
        )
    elif root.namespaces.get("net") != ours.get("net") and not (
        which("iptables-restore") and which("nft")
    ):
        yield blocks(
            "NAMESPACE",
            f"Process {root.pid} ({root.name}) has a network namespace of its own; it needs "
            "iptables-restore and nft.",
            "Install iptables and nftables on both hosts.",
        )
    elif root.in_own_namespace and root.own_pid != 1:
        yield blocks(
            "NAMESPACE",
            f"Process {root.pid} ({root.name}) is in a PID namespace whose first process is not "
            "part of the tree.",
            "Migrate the first process of that namespace.",
        )
