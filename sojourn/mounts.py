"""Mounts that can be made and undone any number of times."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sojourn.run import run

MOUNT_DEADLINE_S = 10


@dataclass(frozen=True)
class Tmpfs:
    """A tmpfs for one image directory. ``size_bytes`` bounds what it can take from the host's memory."""

    path: Path
    size_bytes: int

    def mount(self) -> None:
        """Mount it, unless it is there already. Raises CommandFailed."""
        if is_mounted(self.path):
            return
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        options = f"size={self.size_bytes},mode=0700,nosuid,nodev,noexec"
        run(["mount", "-t", "tmpfs", "-o", options, "sojourn", self.path], deadline_s=MOUNT_DEADLINE_S)


def unmount(path: Path) -> None:
    """Take away what is mounted there, with all it holds, and the empty directory. Harmless where nothing is."""
    while is_mounted(path):
        run(["umount", path], deadline_s=MOUNT_DEADLINE_S)
    if path.is_dir():
        path.rmdir()


def is_mounted(path: Path) -> bool:
    """Whether something is mounted exactly there (proc_pid_mountinfo(5), field 5)."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return str(path) in {line.split()[4] for line in lines}
