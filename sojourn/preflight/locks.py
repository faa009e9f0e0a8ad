"""File locks: what the tree holds, and whether the restore could have the same here.

The original keeps its locks while it is frozen. Where both hosts see the same file with the same locks, on shared
storage, CRIU's restore would wait for the original, and the original for the restore: until the freeze is too long.
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

#: ``F_OFD_GETLK`` of fcntl(2), for which Python has no name, and ``struct flock``: type, whence, start, length, PID.
F_OFD_GETLK = 36
FLOCK = "hhqqi4x"


@dataclass(frozen=True)
class Lock:
    """One lock on a whole file, as far as it matters here: by flock(2), or by fcntl(2)."""

    path: str
    by_flock: bool
    exclusive: bool

    def to_json(self) -> list[Json]:
        """Return it as a short list."""
        return list(astuple(self))


def held(tree: Tree) -> list[Lock]:
    """Return the locks that the tree holds, from lines like ``lock: 1: FLOCK ADVISORY WRITE 7 00:2e:123 0 EOF``."""
    found = set()
    for handle in tree.handles:
        for words in (line.split() for line in handle.info if line.startswith("lock:")):
            if words[2] in {"FLOCK", "POSIX", "OFDLCK"}:
                found.add(Lock(handle.target, words[2] == "FLOCK", "WRITE" in words))
    return sorted(found, key=astuple)


def check(tree: Tree, *, given: bool) -> Iterator[Finding]:
    """Yield whether the option for locks is needed; leases count too."""
    locked = {handle.target for handle in tree.handles if any(line.startswith("lock:") for line in handle.info)}
    if locked:
        yield needs_option("FILE_LOCKS", f"Files are locked: {named(sorted(locked))}.", "--file-locks", given=given)


def not_to_be_had(wanted: Iterable[Lock]) -> Iterator[Finding]:
    """Yield which locks somebody has here, on the destination: the frozen original itself, on shared storage."""
    for lock in wanted:
        if not lock.path.endswith(DELETED) and _is_held(lock):
            yield blocks(
                "FILE_LOCKS",
                f"The lock on {lock.path} is in force on this host too; the frozen original would never let go of it.",
                "Let the program give the lock up first, or keep the file on storage that the hosts do not share.",
            )


def _is_held(lock: Lock) -> bool:
    """Whether the lock can not be had now. A lock by fcntl is only asked for; one by flock is had for an instant."""
    try:
        descriptor = os.open(lock.path, os.O_RDWR | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        if lock.by_flock:
            fcntl.flock(descriptor, (fcntl.LOCK_EX if lock.exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
            return False
        kind = fcntl.F_WRLCK if lock.exclusive else fcntl.F_RDLCK
        answer = fcntl.fcntl(descriptor, F_OFD_GETLK, struct.pack(FLOCK, kind, os.SEEK_SET, 0, 0, 0))
        return bool(struct.unpack(FLOCK, answer)[0] != fcntl.F_UNLCK)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)
