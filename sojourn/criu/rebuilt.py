"""A tree that CRIU has rebuilt and not let run yet: whether it has the shape that it had.

CRIU has every process born by the first thread of its parent. Where that cannot be, a process is
adopted by another one, and what it belongs to is not what it was (``sojourn.criu.pstree``).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from sojourn.criu.pstree import Entry

#: A process in its shape: parent, process group, session; 0 for a group or session of the root's.
Place = tuple[int, int, int]


def difference(expected: Iterable[Entry], root: int) -> str:
    """Return how a rebuilt tree differs in shape from the expected one; empty if it does not.

    Both have the root first, whose PID here is ``root``, and all PIDs are those of the tree's own
    PID namespace. A session or group that the root did not lead is another one now, for all its
    members. Raises OSError if the tree cannot be read.
    """
    wanted, found = _places(expected), _places(_below(root))
    for pid, place in wanted.items():
        if pid not in found:
            return f"process {pid} is not below process {place[0]} any more"
        if found[pid] != place:
            was, now = (
                "parent {}, group {}, session {}".format(*one) for one in (place, found[pid])
            )
            return f"process {pid} has {now} in place of {was}"
    return ""


def _places(tree: Iterable[Entry]) -> dict[int, Place]:
    root, *others = tree
    places = {root.pid: _place(root, root)} | {one.pid: _place(one, root) for one in others}
    # Which process started the root is no part of the tree's shape.
    return places | {root.pid: (0, *places[root.pid][1:])}


def _place(one: Entry, root: Entry) -> Place:
    group = 0 if one.group in {root.group, root.session} else one.group
    return one.parent, group, 0 if one.session == root.session else one.session


def _below(root: int) -> Iterator[Entry]:
    """Yield a process and its descendants, as they number themselves."""
    waiting = [(root, 0)]
    while waiting:
        pid, parent = waiting.pop()
        status = Path(f"/proc/{pid}/status").read_text(errors="replace")
        own, group, session = (
            int(status.split(f"\n{key}:", 1)[1].split("\n", 1)[0].split()[-1])
            for key in ("NSpid", "NSpgid", "NSsid")
        )
        yield Entry(own, parent, group, session)
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        waiting += [(int(child), own) for child in children]
