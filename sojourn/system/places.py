"""Names in directories that others can write to as well: no link is followed, nothing is replaced.

Whoever may write to ``/tmp`` can put a link where root is about to write. So each directory on the
way is opened by itself, and only what is not there yet gets a name.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import stat as modes
from collections.abc import Iterator

#: ``RENAME_NOREPLACE`` of renameat2(2).
NO_REPLACE = 1

DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@contextlib.contextmanager
def directory_of(path: str) -> Iterator[tuple[int, str]]:
    """Open the directory of an absolute path without following links; yield it, and the name.

    Raises OSError if it is not there, or if a part of the way is a link, and ValueError for a path
    that is not plain.
    """
    first, *way = path.split("/")
    if first or not way or any(part in {"", ".", ".."} for part in way):
        raise ValueError(f"{path!r} is not a plain absolute path")
    descriptor = os.open("/", DIRECTORY)
    try:
        for part in way[:-1]:
            below = os.open(part, DIRECTORY, dir_fd=descriptor)
            os.close(descriptor)
            descriptor = below
        yield descriptor, way[-1]
    finally:
        os.close(descriptor)


def rename(directory: int, name: str, to: str) -> None:
    """Rename in a directory. Raises FileExistsError if the other name is taken."""
    arguments = (directory, os.fsencode(name), directory, os.fsencode(to), NO_REPLACE)
    if _libc.renameat2(*arguments) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), to)


def remove(directory: int, name: str, identity: tuple[int, int] | None = None) -> None:
    """Remove a file or an empty directory, if it is there; with an ``identity`` only that one.

    ``identity`` are device and inode.
    """
    with contextlib.suppress(FileNotFoundError):
        found = os.stat(name, dir_fd=directory, follow_symlinks=False)
        if identity not in {None, (found.st_dev, found.st_ino)}:
            return
        if modes.S_ISDIR(found.st_mode):
            with contextlib.suppress(OSError):  # it is in use by now, and stays
                os.rmdir(name, dir_fd=directory)
        else:
            os.unlink(name, dir_fd=directory)


_libc = ctypes.CDLL(None, use_errno=True)
