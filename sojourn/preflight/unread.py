"""Unread data in FIFOs that both hosts see, where they share a kernel, as containers do.

CRIU dumps what is in a FIFO, and its restore writes that into the FIFO of that path. Hosts of one
kernel that see the same FIFO have one pipe behind it: all data would be in it twice, on whichever
host the process goes on.
"""

from __future__ import annotations

import fcntl
import struct
import termios
from collections.abc import Iterable, Iterator
from dataclasses import astuple, dataclass

from sojourn.model import Untyped
from sojourn.preflight import same_file
from sojourn.preflight.finding import Finding, blocks
from sojourn.preflight.holders import is_fifo
from sojourn.preflight.scan import Tree
from sojourn.system import process

READ_IT = (
    "Try again when the program has read them, or have it use a FIFO that each host has for itself."
)


@dataclass(frozen=True)
class Fifo:
    """A FIFO that the tree has open, how many bytes wait in it, and how it is recognised."""

    path: str
    unread: int
    marks: tuple[str, ...]

    def to_json(self) -> list[Untyped]:
        """Return it as a short list."""
        return list(astuple(self))

    @classmethod
    def from_json(cls, fields: list[Untyped]) -> Fifo:
        """Read back what ``to_json`` wrote."""
        path, unread, marks = fields
        return cls(path, unread, tuple(marks))


def of_tree(tree: Tree) -> list[Fifo]:
    """Return the FIFOs of a tree, on the source."""
    systems = same_file.file_systems()
    found = {}
    for handle in tree.handles:
        if is_fifo(handle):
            marks = same_file.marks(handle.target, handle.link, handle.stat, systems)
            unread = bytes_in(handle.pid, handle.number)
            found[handle.target] = Fifo(handle.target, unread, same_file.of_one_kernel(marks))
    return list(found.values())


def shared(fifos: Iterable[Fifo]) -> list[str]:
    """Return the paths of the FIFOs that are one pipe on both hosts; for the destination."""
    systems = same_file.file_systems()
    return [fifo.path for fifo in fifos if same_file.is_here(fifo.path, fifo.marks, systems)]


def doubled(fifos: Iterable[Fifo]) -> Iterator[Finding]:
    """Yield the FIFOs whose data a restore on this host, the destination, would double."""
    waiting = [fifo for fifo in fifos if fifo.unread]
    for path in shared(waiting):
        yield finding(path)


def in_frozen(pids: Iterable[int], paths: Iterable[str]) -> Iterator[Finding]:
    """Yield such a FIFO of a frozen tree; ``paths`` are those that are one pipe on both hosts."""
    wanted = [(pid, path) for pid in pids for path in paths]
    for pid, path in wanted:
        for link in process.descriptors(pid, path):
            if str(link.readlink()) == path and bytes_in(pid, int(link.name)):
                yield finding(path)


def finding(path: str) -> Finding:
    """Return what there is to say of a FIFO with unread data."""
    return blocks(
        "FIFO_IN_USE",
        f"Unread data are in the FIFO {path}, which the other host, of the same kernel, sees too; "
        "the restore would write them into it once more.",
        READ_IT,
    )


def bytes_in(pid: int, descriptor: int) -> int:
    """Return how many bytes wait in a pipe; 0 if the process has closed it meanwhile."""
    with process.borrowed(pid, descriptor) as copy:
        if copy is None:
            return 0
        (waiting,) = struct.unpack("=i", fcntl.ioctl(copy, termios.FIONREAD, bytes(4)))
        return int(waiting)
