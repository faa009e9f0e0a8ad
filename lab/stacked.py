"""Run one command in a root stacked of two layers: ``python -m lab.stacked LOWER UPPER WORK ROOT COMMAND…``.

To be started in a mount namespace of its own, with which the mounts vanish again.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from sojourn.run import run

MOUNT_DEADLINE_S = 10


def stack(lower: str, upper: Path, work: Path, root: Path) -> None:
    """Mount an overlay on ``root``; what is written there goes to ``upper``."""
    for path in (upper, work, root):
        path.mkdir(parents=True, exist_ok=True)
    options = f"lowerdir={lower},upperdir={upper},workdir={work}"
    run(["mount", "-t", "overlay", "-o", options, "overlay", root], deadline_s=MOUNT_DEADLINE_S)


def main() -> None:
    """Become the command, in the stacked root."""
    lower, upper, work, root, *command = sys.argv[1:]
    stack(lower, Path(upper), Path(work), Path(root))
    run(["mount", "-t", "proc", "proc", Path(root) / "proc"], deadline_s=MOUNT_DEADLINE_S)
    os.chroot(root)
    os.chdir("/")
    os.execv(command[0], command)  # noqa: S606  (no shell is the point)


if __name__ == "__main__":
    main()
