"""File locks: what the tree holds, and whether a restore could take the same locks here.

The original keeps its locks while it is frozen. On shared storage, where both hosts see the same
locks, CRIU's restore would wait for the original and the original for the restore, until the freeze
exceeds its limit.
"""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Iterable, Iterator
from dataclasses import astuple, dataclass

from sojourn.model import Json
from sojourn.preflight.finding import Finding, blocks, named, needs_option
from sojourn.preflight.scan import DELETED, Tree

#: ``F_OFD_GETLK`` of fcntl(2), for which Python has no name, and ``struct flock``: type, whence,
#: start, length, PID.
F_OFD_GETLK = 36
FLOCK = "hhqqi4x"


@dataclass(frozen=True)
class Lock:
    """One lock on a file, by flock(2) or by fcntl(2); the range of the latter is not kept."""

    path: str
    by_flock: bool
    exclusive: bool

    def to_json(self) -> list[Json]:
        """Return it as a short list."""
        return list(astuple(self))


def held(tree: Tree) -> list[Lock]:
    """Return the locks that the tree holds.

    A line of fdinfo reads ``lock: 1: FLOCK ADVISORY WRITE 7 00:2e:123 0 EOF``.
    """
    found = set()
    for handle in tree.handles:
        for fields in (line.split() for line in handle.info if line.startswith("lock:")):
            if fields[2] in {"FLOCK", "POSIX", "OFDLCK"}:
                found.add(Lock(handle.target, fields[2] == "FLOCK", "WRITE" in fields))
    return sorted(found, key=astuple)


def check(tree: Tree, *, given: bool) -> Iterator[Finding]:
    """Yield a finding if the option for locks is needed; leases count as locks."""
    locked = {
        handle.target
        for handle in tree.handles
        if any(line.startswith("lock:") for line in handle.info)
    }
    if locked:
        yield needs_option(
            "FILE_LOCKS", f"Files are locked: {named(sorted(locked))}.", "--file-locks", given=given
        )


def unavailable(wanted: Iterable[Lock]) -> Iterator[Finding]:
    """Yield which locks are held here, on the destination.

    On shared storage it is the original itself that holds them.
    """
    for lock in wanted:
        if not lock.path.endswith(DELETED) and _is_held(lock):
            yield blocks(
                "FILE_LOCKS",
                f"The lock on {lock.path} is in force on this host too; the frozen original would "
                "never release it.",
                "Have the program release the lock first, or move the file to storage that the "
                "hosts do not share.",
            )


def _is_held(lock: Lock) -> bool:
    """Return whether the lock cannot be taken now.

    The kernel can test a lock by fcntl; one by flock must be taken, and is released at once.
    """
    try:
        # On this host the path may be a FIFO or a device, whose opening could wait without
        # O_NONBLOCK. That a file is missing is reported by another check.
        descriptor = os.open(lock.path, os.O_RDWR | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        if lock.by_flock:
            fcntl.flock(
                descriptor, (fcntl.LOCK_EX if lock.exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB
            )
            return False
        kind = fcntl.F_WRLCK if lock.exclusive else fcntl.F_RDLCK
        answer = fcntl.fcntl(
            descriptor, F_OFD_GETLK, struct.pack(FLOCK, kind, os.SEEK_SET, 0, 0, 0)
        )
        return bool(struct.unpack(FLOCK, answer)[0] != fcntl.F_UNLCK)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)
