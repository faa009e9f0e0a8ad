"""Limits of the two kernels: what the tree has had from the source's that the destination's would not give.

The restore asks for the same again: the limit of open files (refused beyond ``fs.nr_open``, setrlimit(2)), the size of
each pipe (refused beyond ``fs.pipe-max-size`` without CAP_SYS_RESOURCE, pipe(7)), and capabilities, of which CRIU drops
those that the kernel does not know (``prepare_creds`` in its cr-restore.c).
"""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sojourn import process
from sojourn.preflight.finding import Finding, blocks
from sojourn.preflight.scan import VANISHED, Handle, Tree
from sojourn.process import PROC

#: capabilities(7)
CAP_SYS_RESOURCE = 24

NO_LIMIT = 2**63


@dataclass(frozen=True)
class Limits:
    """What a tree uses, or what a kernel gives; ``capability`` is the number of the highest one."""

    open_files: int
    pipe_bytes: int
    capability: int


def needed(tree: Tree) -> Limits:
    """Return what the tree uses. All capabilities together are no need: root has what there is, on every kernel."""
    return Limits(
        open_files=max((_open_files(task.pid) for task in tree.tasks), default=0),
        pipe_bytes=max((_pipe_bytes(each) for each in _pipes(tree)), default=0),
        capability=max((_capability(task.pid) for task in tree.tasks), default=0),
    )


def here() -> Limits:
    """Return what this host gives."""
    unbound = _has(CAP_SYS_RESOURCE)
    return Limits(
        open_files=_number("fs/nr_open"),
        pipe_bytes=NO_LIMIT if unbound else _number("fs/pipe-max-size"),
        capability=_number("kernel/cap_last_cap"),
    )


def exceeded(wanted: Limits, given: Limits) -> Iterator[Finding]:
    """Yield what the destination would not give."""
    if wanted.open_files > given.open_files:
        yield blocks(
            "LIMIT",
            f"A process may open {wanted.open_files} files, and this host gives {given.open_files} at most.",
            f"sysctl fs.nr_open={wanted.open_files}",
        )
    if wanted.pipe_bytes > given.pipe_bytes:
        yield blocks(
            "LIMIT",
            f"A pipe has {wanted.pipe_bytes} bytes, and this host gives {given.pipe_bytes} at most.",
            f"sysctl fs.pipe-max-size={wanted.pipe_bytes}, or give the worker CAP_SYS_RESOURCE.",
        )
    if wanted.capability > given.capability:
        yield blocks(
            "CAPABILITY",
            f"A process has capability {wanted.capability}, and this kernel knows none above {given.capability}.",
            "Choose a destination with the same kernel or a newer one.",
        )


def _open_files(pid: int) -> int:
    with contextlib.suppress(*VANISHED):
        for line in (PROC / str(pid) / "limits").read_text().splitlines():
            if line.startswith("Max open files"):
                return int(line.split()[4])
    return 0


def _capability(pid: int) -> int:
    """Return the highest capability that a process has without having all of them; 0 if there is none."""
    permitted = _bits(pid)
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
    """Return one handle for each of the tree's pipes."""
    return list({handle.stat.st_ino: handle for handle in tree.handles if handle.target.startswith("pipe:")}.values())


def _pipe_bytes(handle: Handle) -> int:
    """Ask for a pipe's size through a copy of the descriptor: to open it by its path would make us one of its ends."""
    with process.borrowed(handle.pid, handle.number) as copy, contextlib.suppress(OSError):
        return fcntl.fcntl(copy, fcntl.F_GETPIPE_SZ) if copy is not None else 0
    return 0


def _number(key: str) -> int:
    return int(Path("/proc/sys", key).read_text())
