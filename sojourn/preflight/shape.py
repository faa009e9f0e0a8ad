"""Whether CRIU would rebuild the tree in its shape: each process below its parent, in its session.

A daemon whose starter has ended belongs to nobody's session in the tree. Below init that does not
matter; below a process that adopts orphans (``PR_SET_CHILD_SUBREAPER``, prctl(2)) it does.
"""

from __future__ import annotations

from collections.abc import Iterator

from sojourn.criu import pstree
from sojourn.preflight.finding import Finding, blocks
from sojourn.preflight.scan import Task, Tree


def check(tree: Tree) -> Iterator[Finding]:
    """Yield the processes that would not come back to their parent, with what helps."""
    by_pid = {task.pid: task for task in tree.tasks}
    entries = [_entry(task, by_pid) for task in tree.tasks]
    by_own_pid = {task.own_pid: task for task in tree.tasks}
    for entry in pstree.torn(entries):
        yield _torn(by_own_pid[entry.pid], by_own_pid[entry.parent], tree.root)


def _entry(task: Task, by_pid: dict[int, Task]) -> pstree.Entry:
    parent = by_pid[task.parent].own_pid if task.parent in by_pid else 0
    return pstree.Entry(task.own_pid, parent, task.group, task.session)


def _torn(task: Task, parent: Task, root: Task) -> Finding:
    in_namespace = (
        "Or start the whole tree by `unshare --fork --pid setsid CMD`, and migrate the first "
        "process in there."
    )
    hint = f"Start {task.name} in the foreground, so that it stays its parent's child."
    return blocks(
        "TREE_TORN",
        f"Process {task.pid} ({task.name}) was adopted by process {parent.pid} ({parent.name}), "
        f"which was never in its session, {task.session}; on another host it would not be its "
        "child any more.",
        f"{hint} {in_namespace}" if parent == root else hint,
    )
