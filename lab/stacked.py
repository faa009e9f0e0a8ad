"""Run one command in a root that is stacked of two layers.

``python -m lab.stacked LOWER UPPER WORK ROOT COMMAND…``, in a mount namespace of its own, with
which its mounts vanish.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from sojourn.system.run import run

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
    # A chroot is enough to install something; only CRIU needs a root that pivot_root has made.
    os.chroot(root)
    os.chdir("/")
    os.execv(command[0], command)


if __name__ == "__main__":
    main()
