"""Mounting and unmounting, both idempotent; and what is mounted."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sojourn.system.run import run

MOUNT_DEADLINE_S = 10


@dataclass(frozen=True)
class Tmpfs:
    """A tmpfs for one image directory; ``size_bytes`` limits the memory that it can use."""

    path: Path
    size_bytes: int

    def mount(self) -> None:
        """Mount it, unless it is mounted already. Raises CommandFailed."""
        if is_mounted(self.path):
            return
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        # The images are the memory of a process of any user: only root may read them, and nothing
        # that another host has sent may be run or opened as a device.
        options = f"size={self.size_bytes},mode=0700,nosuid,nodev,noexec"
        run(
            ["mount", "-t", "tmpfs", "-o", options, "sojourn", self.path],
            deadline_s=MOUNT_DEADLINE_S,
        )


def unmount(path: Path) -> None:
    """Unmount all that is mounted on a directory, and remove the directory. Idempotent."""
    # mount(2) puts a second tmpfs on top of the first without an error, so once may not be enough.
    while is_mounted(path):
        run(["umount", path], deadline_s=MOUNT_DEADLINE_S)
    if path.is_dir():
        # Not a recursive removal: that would delete what lies on the disk below the mount.
        path.rmdir()


def is_mounted(path: Path) -> bool:
    """Return whether a path is a mount point."""
    return str(path) in {mount.place for mount in mounted()}


@dataclass(frozen=True)
class Mount:
    """A mounted file system: major and minor number of its device, mount point, type, source."""

    device: tuple[int, int]
    place: str
    kind: str
    source: str


def tmpfses() -> dict[int, list[str]]:
    """Return where each tmpfs of this host is mounted, by the number of its device."""
    found: dict[int, list[str]] = {}
    for mount in mounted():
        if mount.kind == "tmpfs":
            found.setdefault(os.makedev(*mount.device), []).append(mount.place)
    return found


def mounted(pid: int | str = "self") -> Iterator[Mount]:
    """Yield what is mounted for a process, in the order of proc_pid_mountinfo(5)."""
    for line in Path(f"/proc/{pid}/mountinfo").read_text(errors="replace").splitlines():
        fields = line.split()
        # Optional fields end with a hyphen; the file system's type and source follow it.
        kind, source = fields[fields.index("-") + 1 :][:2]
        major, minor = fields[2].split(":")
        yield Mount((int(major), int(minor)), fields[4], kind, source)
