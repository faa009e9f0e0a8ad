"""The files by which Unix sockets are found (unix(7)), asked of the kernel without a connection."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
from pathlib import Path

from sojourn.system import process

#: ``SIOCUNIXFILE`` of include/uapi/linux/un.h: a descriptor of the file that a socket is bound to.
FILE_OF = 0x89E0


def file_of(pid: int, descriptor: int) -> tuple[str, int] | None:
    """Return the path and the inode of the file to which a process's socket is bound, if any.

    The path is the kernel's: absolute, and with `` (deleted)`` behind it once that is so.
    """
    with process.borrowed(pid, descriptor) as copy:
        try:
            file = fcntl.ioctl(copy, FILE_OF) if copy is not None else -1
        except OSError:
            return None
    if file < 0:
        return None
    try:
        return str(Path(f"/proc/self/fd/{file}").readlink()), os.fstat(file).st_ino
    finally:
        os.close(file)


def name_of(bound: str, file: tuple[str, int]) -> str:
    """Return the name that a socket's file has now; empty if it has none, or none is found.

    ``bound`` is the path to which the socket was bound, ``file`` what ``file_of`` says. Programs
    bind another name first, and then rename the file, or make a link to it and remove the first.
    """
    path, inode = file
    if _is(bound, inode):
        return bound
    if _is(path, inode):
        return path
    with contextlib.suppress(OSError), os.scandir(Path(path).parent) as entries:
        return next((one.path for one in entries if one.inode() == inode), "")
    return ""


def _is(path: str, inode: int) -> bool:
    with contextlib.suppress(OSError):
        return os.lstat(path).st_ino == inode
    return False


def is_bound(path: str) -> bool:
    """Return whether a socket of this kernel, in whatever namespace, is bound to a socket file.

    Raises OSError if there is no such file.
    """
    file = os.open(path, os.O_PATH | os.O_NOFOLLOW)
    try:
        # A socket of another type answers EPROTOTYPE before it is connected, and one for datagrams
        # does not learn of it.
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
            probe.connect(f"/proc/self/fd/{file}")
    except ConnectionRefusedError:
        return False
    except OSError:
        return True
    finally:
        os.close(file)
    return True
