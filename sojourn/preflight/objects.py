"""Kernel objects that CRIU cannot migrate, found by their names in ``/proc``.

The list of what it can migrate follows ``dump_one_file`` in CRIU's files.c and ``handle_vma`` in
its proc_parse.c.
"""

from __future__ import annotations

import contextlib
import stat as modes
from collections.abc import Iterator
from functools import cache
from os import major, makedev, minor, walk
from pathlib import Path

from sojourn.preflight.files import MEMORY_DEVICES
from sojourn.preflight.finding import Finding, blocks
from sojourn.preflight.scan import DELETED, Handle, Tree, without_handles

#: The kernel's anonymous inodes that CRIU dumps.
KNOWN_INODES = {
    *(
        "anon_inode:[eventfd]",
        "anon_inode:[eventpoll]",
        "anon_inode:inotify",
        "anon_inode:[fanotify]",
    ),
    *("anon_inode:[signalfd]", "anon_inode:[timerfd]", "anon_inode:[pidfd]"),
}
BPF_MAP = "anon_inode:bpf-map"
WATCHES = {"anon_inode:inotify", "anon_inode:[fanotify]"}

#: Where CRIU searches for watched files that it cannot open by their handles, besides the root.
SEARCHED = (
    *(
        "/etc",
        "/var/spool",
        "/var/log",
        "/usr/share/dbus-1/services",
        "/usr/share/dbus-1/system-services",
    ),
    *("/var/lib/polkit-1/localauthority", "/usr/share/polkit-1/actions", "/lib/udev"),
)

WITHOUT_IO_URING = (
    "Start it where there is none: `sysctl kernel.io_uring_disabled=2` before (from Linux 6.6), or "
    "SystemCallFilter=~io_uring_setup in its unit. Programs with a libuv older than 1.50, as "
    "Node.js, do without it by UV_USE_IO_URING=0."
)

#: Anonymous inodes that CRIU does not dump, by the beginning of the name: code and hint.
REFUSED_INODES = {
    "anon_inode:[io_uring]": (
        "IO_URING",
        WITHOUT_IO_URING,
    ),
    "anon_inode:[perf_event]": ("FILE_UNSUPPORTED", "Stop the profiler."),
    "anon_inode:bpf": ("FILE_UNSUPPORTED", "Have the program unload its BPF programs."),
}

#: Major numbers of terminals: virtual consoles and serial lines, /dev/tty and /dev/ptmx, and the
#: slaves of pseudo-terminals.
TERMINALS = {4, 5, *range(136, 144)}
SLAVES = range(136, 144)
MULTIPLEXER = (5, 2)
MISC_DEVICES = 10

#: The miscellaneous devices that CRIU supports: autofs, and TUN/TAP if its network namespace is
#: migrated too.
TUN, AUTOFS = 200, 235


def check(tree: Tree, criu: Path, *, own_ipc: bool, own_network: bool) -> Iterator[Finding]:
    """Yield the findings for a tree, which may have an IPC and a network namespace of its own."""
    hidden = set(without_handles(tree.root.pid))
    for handle in tree.handles:
        if handle.target.startswith(("anon_inode:", "pidfd:")):
            yield from _anonymous(tree, handle, hidden, criu)
        elif modes.S_ISCHR(handle.stat.st_mode) or modes.S_ISBLK(handle.stat.st_mode):
            yield from _device(handle, own_network=own_network)
    yield from _terminals(tree)
    yield from _areas(tree, own_ipc=own_ipc)


def _anonymous(tree: Tree, handle: Handle, hidden: set[int], criu: Path) -> Iterator[Finding]:
    refused = next(
        (REFUSED_INODES[name] for name in REFUSED_INODES if handle.target.startswith(name)), None
    )
    if handle.target in WATCHES:
        yield from _watch(handle, hidden)
    elif handle.target.startswith(("anon_inode:[pidfd]", "pidfd:")):
        yield from _pidfd(tree, handle)
    elif handle.target in KNOWN_INODES or (handle.target == BPF_MAP and _knows_bpf(criu)):
        return
    elif refused:
        yield blocks(refused[0], f"{handle.target} ({handle.user}) cannot be dumped.", refused[1])
    else:
        yield blocks("FILE_UNSUPPORTED", f"{handle.target} ({handle.user}) cannot be dumped.")


def _watch(handle: Handle, hidden: set[int]) -> Iterator[Finding]:
    """Yield a watch on a file that CRIU cannot find by handle, nor in the places it searches."""
    for line in (line for line in handle.info if line.startswith(("inotify", "fanotify"))):
        fields = dict(field.split(":", 1) for field in line.split() if ":" in field)
        device, inode = int(fields.get("sdev", "0"), 16), int(fields.get("ino", "0"), 16)
        # fdinfo shows the kernel's own encoding of the device, which differs from user space's.
        if device in hidden and not _is_known_place(makedev(device >> 20, device & 0xFFFFF), inode):
            yield blocks(
                "INOTIFY",
                f"{handle.target} ({handle.user}) watches a file that CRIU cannot find again.",
                "Have the program watch a directory on another file system, or disable watching.",
            )
            return


def _is_known_place(device: int, inode: int) -> bool:
    """Return whether CRIU finds a watched file in the places it searches (its irmap.c)."""
    for place in SEARCHED:
        for directory, _, names in walk(place):
            for path in (directory, *(f"{directory}/{name}" for name in names)):
                with contextlib.suppress(OSError):
                    stat = Path(path).lstat()
                    if (stat.st_dev, stat.st_ino) == (device, inode):
                        return True
    root = Path("/").stat()
    return (root.st_dev, root.st_ino) == (device, inode)


@cache
def _knows_bpf(criu: Path) -> bool:
    """Return whether CRIU was built with libbpf, which dumps BPF maps; Debian's is not."""
    # The libraries that a program is linked with are named in its file.
    return b"libbpf" in criu.read_bytes()


def _pidfd(tree: Tree, handle: Handle) -> Iterator[Finding]:
    pid = next((int(line.split()[1]) for line in handle.info if line.startswith("Pid:")), -1)
    if pid > 0 and pid not in tree.pids:
        yield blocks(
            "PIDFD_OUTSIDE",
            f"A pidfd ({handle.user}) refers to process {pid}, outside the tree.",
        )


def _device(handle: Handle, *, own_network: bool) -> Iterator[Finding]:
    number = major(handle.stat.st_rdev)
    known = number in TERMINALS or number == MEMORY_DEVICES
    known |= number == MISC_DEVICES and minor(handle.stat.st_rdev) in (
        {AUTOFS, TUN} if own_network else {AUTOFS}
    )
    if modes.S_ISBLK(handle.stat.st_mode) or not known:
        yield blocks("DEVICE", f"The device {handle.target} ({handle.user}) cannot be dumped.")


def _terminals(tree: Tree) -> Iterator[Finding]:
    """Yield a terminal whose other side does not belong to the tree."""
    has_master = any(_number(handle) == MULTIPLEXER for handle in tree.handles)
    users = {handle.target: handle.user for handle in tree.handles if _is_terminal(handle)}
    if users and not has_master:
        path, user = next(iter(users.items()))
        yield blocks(
            "SHELL_JOB",
            f"The terminal {path.removesuffix(DELETED)} ({user}) belongs to a program outside the "
            "tree.",
            "Start it without a terminal, `setsid CMD </dev/null >LOG 2>&1`, or migrate it "
            "together with its tmux or script.",
        )


def _is_terminal(handle: Handle) -> bool:
    return (
        modes.S_ISCHR(handle.stat.st_mode)
        and _number(handle)[0] in TERMINALS
        and _number(handle) != MULTIPLEXER
    )


def _number(handle: Handle) -> tuple[int, int]:
    return major(handle.stat.st_rdev), minor(handle.stat.st_rdev)


def _areas(tree: Tree, *, own_ipc: bool) -> Iterator[Finding]:
    for pid, name in tree.areas:
        if name.startswith("/SYSV") and not own_ipc:
            yield blocks(
                "SYSV_SHM",
                f"Process {pid} uses System V shared memory, {name.removesuffix(DELETED)}, of the "
                "host's IPC namespace.",
                "Start it in an IPC namespace of its own: `unshare --ipc CMD`. For PostgreSQL, set "
                "shared_memory_type=mmap.",
            )
        elif name.startswith("anon_inode:") and not name.startswith(tuple(REFUSED_INODES)):
            yield blocks("DEVICE", f"Process {pid} has mapped {name}, which cannot be dumped.")
        elif name.startswith("/anon_hugepage"):
            yield blocks(
                "HUGETLB",
                f"Process {pid} has memory in huge pages of hugetlbfs.",
                "Disable huge pages in the program.",
            )
    for file in tree.files.values():
        mode = file.stat.st_mode
        of_memory = modes.S_ISCHR(mode) and major(file.stat.st_rdev) == MEMORY_DEVICES
        if file.mapped and (modes.S_ISBLK(mode) or modes.S_ISCHR(mode)) and not of_memory:
            yield blocks("DEVICE", f"The device {file.path} ({file.user}) cannot be dumped.")
