"""What control groups do to the tree, and would not do any more: programs that deny, and limits.

A restored tree joins the group of the destination's worker (``--manage-cgroups=ignore``).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from sojourn.preflight.finding import Finding, blocks, named, ok
from sojourn.preflight.scan import Task, Tree
from sojourn.system import control_group

CODE = "CONTROL_GROUP"


def check(tree: Tree) -> Iterator[Finding]:
    """Yield each group with programs that deny something, and as a note its limits."""
    groups: dict[Path, Task] = {}
    for task in tree.tasks:
        group = control_group.of(task.pid)
        if group:
            groups.setdefault(group, task)
    ours = control_group.of("self")
    for group, task in groups.items():
        if group != ours:
            # A group that has been removed meanwhile confines nobody.
            with contextlib.suppress(OSError):
                yield from _of_group(group, task, control_group.filters(ours) if ours else set())


def _of_group(group: Path, task: Task, of_worker: set[int]) -> Iterator[Finding]:
    # Programs of the whole host are in force for the worker too: those are the site's, not the
    # tree's.
    if control_group.filters(group) - of_worker:
        yield blocks(
            CODE,
            f"BPF programs of the control group {group} deny packets, sockets or devices to "
            f"process {task.pid} ({task.name}); on another host nothing would.",
            "Start it outside of that group; for a service of systemd, without settings such as "
            "IPAddressDeny=, SocketBindDeny= and DevicePolicy=.",
        )
        return
    limits = control_group.limits(group)
    if limits:
        shown = named([f"{name} {value}" for name, value in limits.items()], 4)
        yield ok(
            CODE,
            f"Limits of the control group {group} stay behind: {shown}. The process joins that of "
            "the destination's worker.",
        )
