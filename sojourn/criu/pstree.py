"""The shape of a tree, parents, process groups and sessions, and which shapes CRIU cannot rebuild.

A process can only be born into its parent's session or begin one of its own. So CRIU makes each
process as the child of its parent while that is in the right session (``prepare_pstree_ids`` in
CRIU's pstree.c). A process that was orphaned, and whose new parent was never in its session, does
not come back to it: below the root it would end up under init; further down the restore fails.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from sojourn.criu.protobuf import entries, fields
from sojourn.errors import CriuFailed

#: ``pstree_entry`` of images/pstree.proto.
PID, PARENT, GROUP, SESSION = 1, 2, 3, 4

#: The first process of a PID namespace, to which its orphans come back.
INIT = 1


@dataclass(frozen=True)
class Entry:
    """One process: its PID and those of its parent, group and session, in its PID namespace."""

    pid: int
    parent: int
    group: int
    session: int


def read(images: Path) -> list[Entry]:
    """Return the processes of a dump, the root first. Raises CriuFailed for a malformed image."""
    image = (images / "pstree.img").read_bytes()
    return [_entry(image, begin, end) for begin, end in entries(image)]


def torn(tree: Iterable[Entry]) -> Iterator[Entry]:
    """Yield the processes that CRIU would not bring back to their parent; the root comes first."""
    root, *others = tree
    by_pid = {entry.pid: entry for entry in (root, *others)}
    born: dict[int, int] = {}
    for entry in others:
        if entry.session == entry.pid or entry.parent not in by_pid:
            continue
        parent = by_pid[entry.parent]
        if parent == root and root.pid == INIT:
            continue
        if parent == root:
            if entry.session != root.session:
                yield entry
        elif entry.session != parent.session and not _can_inherit(entry, by_pid, born):
            yield entry


def _can_inherit(entry: Entry, by_pid: dict[int, Entry], born: dict[int, int]) -> bool:
    """Return whether its parent can have been in its session before it began one of its own.

    ``born`` holds in which session a process must have been born for another one's sake.
    """
    parent = by_pid.get(entry.parent)
    while parent and parent.pid != entry.session:
        if born.setdefault(parent.pid, entry.session) != entry.session:
            return False
        parent = by_pid.get(parent.parent)
    return parent is not None


def _entry(image: bytes, begin: int, end: int) -> Entry:
    found = {field.number: field.value for field in fields(image, begin, end)}
    values = [found.get(number) for number in (PID, PARENT, GROUP, SESSION)]
    if not all(isinstance(value, int) for value in values):
        raise CriuFailed("CRIU wrote a process of pstree.img in an unknown way.")
    return Entry(*(int(value) for value in values if isinstance(value, int)))
