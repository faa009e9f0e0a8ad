"""Pager and guard as others find them: the file with their two PIDs, and whether both live."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

#: The file in the work directory.
PAIR = "pager.pids"

#: How often to look, in seconds.
LOOK_S = 0.001


def name(work: Path, pager: int, guard: int) -> None:
    """Leave the two PIDs, at once: who reads half of them would see nobody. Raises OSError."""
    draft = work / f"{PAIR}.draft"
    draft.write_text(f"{pager} {guard}\n")
    draft.replace(work / PAIR)


def pids(work: Path) -> list[int]:
    """Return the two PIDs as they were left; empty if they were not."""
    with contextlib.suppress(OSError):
        return [int(word) for word in (work / PAIR).read_text().split()]
    return []


def serves(awaited: Path) -> bool:
    """Wait until a tree may run; return whether a pager and its guard hold its memory.

    ``awaited`` is the file that the pager leaves when it may, beside that with their PIDs. Either
    of the two replaces the other, so that both are alive again soon. With neither the kernel would
    put zeros where a page is missing.
    """
    while any(alive := [_lives(pid) for pid in pids(awaited.parent)]):
        if all(alive) and awaited.exists():
            return True
        time.sleep(LOOK_S)
    return False


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
