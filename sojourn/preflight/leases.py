"""Leases on files (fcntl(2), F_SETLEASE): whether the migration itself would break one.

Whoever opens a file breaks another one's lease on it for writing, and the kernel sends its holder a
signal, SIGIO, which ends a program that does not handle it. A frozen original would get it when it
is woken. So a file under such a lease can only be moved where nobody opens the original's: the tree
does not write it, and the destination has its own. Leases for reading are not broken by readers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import astuple, dataclass

from sojourn.model import Untyped
from sojourn.preflight import same_file
from sojourn.preflight.finding import Finding, blocks
from sojourn.preflight.scan import ACCESS_MODE, DELETED, Handle, Tree

RELEASE_IT = (
    "Have the program give the lease up, or let it use a file that it only reads and that each "
    "host has for itself. For Samba, set `kernel oplocks = no`."
)


@dataclass(frozen=True)
class Lease:
    """A lease for writing: the file, its holder in words, and how the file is recognised.

    ``holder``: PID in its namespace, and descriptor, as CRIU's images have them. ``compared``: the
    tree may write it, so that its content would be compared where hosts do not see the same file.
    """

    path: str
    user: str
    holder: tuple[int, int]
    compared: bool
    marks: tuple[str, ...]

    def to_json(self) -> list[Untyped]:
        """Return it as a short list."""
        return list(astuple(self))

    @classmethod
    def from_json(cls, fields: list[Untyped]) -> Lease:
        """Read back what ``to_json`` wrote."""
        path, user, (pid, descriptor), compared, marks = fields
        return cls(path, user, (pid, descriptor), compared, tuple(marks))


def held(tree: Tree) -> list[Lease]:
    """Return the leases for writing that a tree holds.

    A line of fdinfo reads ``lock: 1: LEASE ACTIVE WRITE 7 00:2e:123 0 EOF``.
    """
    pids = {task.pid: task.own_pid for task in tree.tasks}
    return [
        _lease(handle, pids[handle.pid])
        for handle in tree.handles
        if any(_is_exclusive(line) for line in handle.info) and not handle.target.endswith(DELETED)
    ]


def in_the_way(leases: Iterable[Lease]) -> Iterator[Finding]:
    """Yield the leases that the migration to this host, the destination, would break."""
    systems = same_file.file_systems()
    for lease in leases:
        why = "it is written" if lease.compared else "both hosts see the same"
        if lease.compared or same_file.is_here(lease.path, lease.marks, systems):
            yield blocks(
                "LEASE",
                f"{lease.path} is under a lease ({lease.user}), and {why}: the file would be "
                "opened while the program is frozen, and the kernel would end the program for it.",
                RELEASE_IT,
            )


def _lease(handle: Handle, own_pid: int) -> Lease:
    systems = same_file.file_systems()
    marks = same_file.marks(handle.target, handle.link, handle.stat, systems)
    written = handle.flags & ACCESS_MODE != 0
    return Lease(handle.target, handle.user, (own_pid, handle.number), written, marks)


def _is_exclusive(line: str) -> bool:
    fields = line.split()
    return fields[:1] == ["lock:"] and fields[2:3] == ["LEASE"] and "READ" not in fields[4:5]
