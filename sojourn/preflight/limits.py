"""Limits of the two kernels: what the source's permitted and the destination's would not.

The restore sets what the tree had on the source: the limit of open files (refused above
``fs.nr_open``, setrlimit(2)), the size of each pipe (refused above ``fs.pipe-max-size`` without
CAP_SYS_RESOURCE, pipe(7)), and capabilities, of which CRIU drops those that the kernel does not
know (``prepare_creds`` in its cr-restore.c).
"""

from __future__ import annotations

import contextlib
import fcntl
import resource
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sojourn.preflight.finding import Finding, blocks
from sojourn.preflight.scan import VANISHED, Handle, Tree
from sojourn.system import process
from sojourn.system.process import PROC

#: The number of a capability (capabilities(7)).
CAP_SYS_RESOURCE = 24

NO_LIMIT = 2**63


@dataclass(frozen=True)
class Limits:
    """What a tree uses, or a kernel permits; ``capability`` is the number of the highest one."""

    open_files: int
    pipe_bytes: int
    capability: int


def needed(tree: Tree) -> Limits:
    """Return what the tree uses.

    All capabilities together count as none: root has all that its kernel knows, on any kernel.
    """
    return Limits(
        open_files=max((_open_files(task.pid) for task in tree.tasks), default=0),
        pipe_bytes=max((_pipe_bytes(pipe) for pipe in _pipes(tree)), default=0),
        capability=max((_capability(task.pid) for task in tree.tasks), default=0),
    )


def unreadable(tree: Tree) -> Iterator[Finding]:
    """Yield the process whose limits this host's CRIU may not read (prlimit(2)), if there is one.

    A container's root that lacks CAP_SYS_RESOURCE may read those of its own processes only.
    """
    for task in tree.tasks:
        try:
            with contextlib.suppress(ProcessLookupError):
                resource.prlimit(task.pid, resource.RLIMIT_NOFILE)
        except PermissionError:
            yield blocks(
                "PRIVILEGES",
                f"CRIU may not read the limits of process {task.pid} ({task.name}), which is "
                "another user's: root lacks CAP_SYS_RESOURCE here.",
                "Give Sojourn's worker all capabilities of root; in a container, by its settings.",
            )
            return


def here() -> Limits:
    """Return what this host permits."""
    unlimited = _has(CAP_SYS_RESOURCE)
    return Limits(
        open_files=_number("fs/nr_open"),
        pipe_bytes=NO_LIMIT if unlimited else _number("fs/pipe-max-size"),
        capability=_number("kernel/cap_last_cap"),
    )


def exceeded(wanted: Limits, given: Limits) -> Iterator[Finding]:
    """Yield what the destination would not permit."""
    if wanted.open_files > given.open_files:
        yield blocks(
            "LIMIT",
            f"A process may open {wanted.open_files} files; this host permits at most "
            f"{given.open_files}.",
            f"Run `sysctl fs.nr_open={wanted.open_files}` there.",
        )
    if wanted.pipe_bytes > given.pipe_bytes:
        yield blocks(
            "LIMIT",
            f"A pipe has {wanted.pipe_bytes} bytes; this host permits at most {given.pipe_bytes}.",
            f"Run `sysctl fs.pipe-max-size={wanted.pipe_bytes}` there, or give the worker "
            "CAP_SYS_RESOURCE.",
        )
    if wanted.capability > given.capability:
        yield blocks(
            "CAPABILITY",
            f"A process has capability {wanted.capability}; this host's kernel has none above "
            f"{given.capability}.",
            "Choose a destination with the same or a newer kernel.",
        )


def _open_files(pid: int) -> int:
    with contextlib.suppress(*VANISHED):
        for line in (PROC / str(pid) / "limits").read_text().splitlines():
            if line.startswith("Max open files"):
                # The hard limit; the soft one is never above it.
                return int(line.split()[4])
    return 0


def _capability(pid: int) -> int:
    """Return the highest capability of a process that does not have all of them; otherwise 0."""
    permitted = _bits(pid)
    # The set is full if every bit up to the last one is set: one more carries into the bit above
    # it.
    has_all = permitted + 1 == 1 << (_number("kernel/cap_last_cap") + 1)
    return 0 if has_all or not permitted else permitted.bit_length() - 1


def _has(capability: int) -> bool:
    return bool(_bits("self") & 1 << capability)


def _bits(pid: int | str) -> int:
    with contextlib.suppress(*VANISHED):
        for line in (PROC / str(pid) / "status").read_text(errors="replace").splitlines():
            if line.startswith("CapPrm:"):
                return int(line.split()[1], 16)
    return 0


def _pipes(tree: Tree) -> list[Handle]:
    """Return one handle per pipe of the tree."""
    return list(
        {
            handle.stat.st_ino: handle
            for handle in tree.handles
            if handle.target.startswith("pipe:")
        }.values()
    )


def _pipe_bytes(handle: Handle) -> int:
    """Return the size of a pipe, 0 if it is gone."""
    # The descriptor is copied: to open a pipe by its path would make this process one of its ends.
    with process.borrowed(handle.pid, handle.number) as copy, contextlib.suppress(OSError):
        return fcntl.fcntl(copy, fcntl.F_GETPIPE_SZ) if copy is not None else 0
    return 0


def _number(key: str) -> int:
    return int(Path("/proc/sys", key).read_text())
