"""How a file is recognised as the very same object from two hosts, without touching it.

Equal size and mode are not equal files, and equal content is not the same file: what one host
writes, the other one must see. Hosts that see an object through a network file system see it with
the same handle (name_to_handle_at(2)), which is the server's, and by the same number at the same
source of the mount. Two hosts of one kernel, such as containers, see it with its device and inode.
A local file system is another one on each host, even where disks are copies of each other. For
storage of which the kernel does not know that it is shared, the setting ``shared_paths`` vouches,
for the same kind of file system on both hosts: where the storage is not mounted there is another.

A host writes to a network file system when it comes to it. What the frozen tree has written must be
there before another host reads it, or appends to it: so the source flushes it.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from sojourn.preflight.scan import File
from sojourn.settings import load
from sojourn.system.mounts import mounted
from sojourn.system.process import boot_id

#: File systems whose files are the same objects on all hosts (proc_filesystems(5)). Those of a
#: virtual machine's host, 9p and virtiofs, are not among them: it may be another one.
NETWORK = {
    *("afs", "beegfs", "ceph", "cifs", "gfs2", "glusterfs", "gpfs", "lustre", "nfs", "nfs4"),
    *("ocfs2", "orangefs", "smb3"),
    *("fuse.ceph", "fuse.ceph-fuse", "fuse.glusterfs", "fuse.juicefs", "fuse.mfs"),
    *("fuse.moosefs", "fuse.sshfs"),
}

#: ``AT_FDCWD``, ``AT_SYMLINK_FOLLOW`` and ``MAX_HANDLE_SZ`` of name_to_handle_at(2).
CWD, FOLLOW, HANDLE_BYTES = -100, 0x400, 128


#: The type and the source of each mounted file system, by the number of its device.
FileSystems = dict[int, tuple[str, str]]


def file_systems() -> FileSystems:
    """Return what is mounted on this host now; there may be thousands of files to be marked."""
    return {os.makedev(*mount.device): (mount.kind, mount.source) for mount in mounted()}


def marks(path: str, link: str, found: os.stat_result, systems: FileSystems) -> tuple[str, ...]:
    """Return what names a file on every host that sees it: two with a common one are the same.

    ``link``: what leads to it, a link in ``/proc`` or the path itself.
    """
    return (*_marks(link, found, systems), *_vouched(path, found, systems))


def of_one_kernel(found: tuple[str, ...]) -> tuple[str, ...]:
    """Return those marks by which only hosts of one kernel recognise a file."""
    return tuple(mark for mark in found if mark.startswith(f"{boot_id()}:"))


def is_here(path: str, wanted: tuple[str, ...], systems: FileSystems) -> bool:
    """Return whether the file of that path on this host is the one with such marks."""
    try:
        here = marks(path, path, os.lstat(path), systems)
    except OSError:
        return False
    return bool({*here}.intersection(wanted))


def digests(paths: Iterable[str]) -> dict[str, str]:
    """Return the content of files as SHA-256 in hexadecimal digits; without what cannot be read.

    A file that is gone by now travels in the images, as a deleted one.
    """
    found = {}
    for path in paths:
        with contextlib.suppress(OSError), Path(path).open("rb") as file:
            found[path] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def remote_devices() -> set[int]:
    """Return the numbers of the mounted file systems that other hosts see over a network."""
    systems = file_systems()
    found = {device for device, (kind, _) in systems.items() if kind in NETWORK}
    for place in _vouched_places():
        with contextlib.suppress(OSError):
            found.add(Path(place).stat().st_dev)
    # Two hosts that have one disk in common, as containers may, have one cache of it too.
    return {device for device in found if not os.major(device)}


def is_vouched(path: str) -> bool:
    """Whether the setting vouches that other hosts see the same at this path."""
    return any(path.startswith(f"{place}/") for place in _vouched_places())


def flush(files: Iterable[File]) -> int:
    """Have the kernel write what is left of files that were written to; return how many.

    Raises OSError where they cannot be written, for lack of space for example.
    """
    written = [file for file in files if file.written and file.stat.st_nlink]
    for file in written:
        # By a descriptor of our own, which may be for reading: the kernel flushes the whole file.
        with Path(file.link).open("rb") as opened:
            os.fsync(opened)
    return len(written)


def _vouched_places() -> list[str]:
    return [place for place in load().shared_paths.split(":") if place]


def _vouched(path: str, found: os.stat_result, systems: FileSystems) -> Iterator[str]:
    kind, _ = systems.get(found.st_dev, ("", ""))
    # The number of a block device tells two disks apart; those of other file systems are arbitrary.
    disk = f":{found.st_dev}" if os.major(found.st_dev) else ""
    for place in _vouched_places():
        if path.startswith(f"{place}/"):
            yield f"{kind}:{place}:{found.st_ino}{disk}"


def _marks(path: str, found: os.stat_result, systems: FileSystems) -> Iterator[str]:
    yield f"{boot_id()}:{found.st_dev}:{found.st_ino}"
    kind, source = systems.get(found.st_dev, ("", ""))
    if kind in NETWORK:
        yield f"{kind}:{source}:{found.st_ino}"
        handle = _handle(path)
        if handle:
            yield f"{kind}:{handle}"


def _handle(path: str) -> str:
    """Return a file's handle in hexadecimal digits; empty if its file system has none."""
    handle = _FileHandle(HANDLE_BYTES)
    mount = ctypes.c_int()
    arguments = (CWD, os.fsencode(path), ctypes.byref(handle), ctypes.byref(mount), FOLLOW)
    if _libc.name_to_handle_at(*arguments) != 0:
        return ""
    return f"{handle.type}:{bytes(handle.content[: handle.size]).hex()}"


class _FileHandle(ctypes.Structure):
    """``struct file_handle`` of name_to_handle_at(2)."""

    _fields_ = (
        ("size", ctypes.c_uint),
        ("type", ctypes.c_int),
        ("content", ctypes.c_ubyte * HANDLE_BYTES),
    )


_libc = ctypes.CDLL(None, use_errno=True)
