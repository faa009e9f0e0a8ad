"""Memory that can never come after the process runs, and crosses while it is frozen.

CRIU leaves for later only what is anonymous, private and not locked (``vma_entry_can_be_lazy`` in
its vma.h). What is left: shared memory, locked memory, what a process has changed of a file that it
maps privately, and of each stack the page in use. ``/proc/PID/smaps`` shows that
(proc_pid_smaps(5)); to read it takes some milliseconds for each 100 MB, during which the process
cannot change its mappings.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from sojourn.preflight.memory_files import BLOCK_BYTES
from sojourn.preflight.scan import MEMORY, VANISHED, behind, read
from sojourn.system.process import PROC

#: What the kernel shows in ``VmFlags`` of locked memory.
LOCKED = "lo"

#: The memory of a private mapping that is the process's own.
OWN = ("Anonymous", "Swap")


@dataclass
class Area:
    """One mapping: its bounds, rights and what stands behind it, and the lines that follow."""

    bounds: str
    rights: str
    device: str
    inode: str
    path: str
    figures: dict[str, str] = field(default_factory=dict)

    @property
    def is_shared_memory(self) -> bool:
        """Whether it is memory that several processes may share, and no file of a file system."""
        return self.rights.endswith("s") and self.path.startswith(MEMORY)

    @property
    def is_left_for_later(self) -> bool:
        """Whether CRIU leaves it for later."""
        locked = LOCKED in self.figures.get("VmFlags", "").split()
        return self.rights.endswith("p") and self.inode == "0" and not locked

    @property
    def own_bytes(self) -> int:
        """How much memory of its own the process has in it."""
        if not self.rights.endswith("p"):
            return 0
        return sum(int(self.figures.get(name, "0").split()[0]) * 1024 for name in OWN)


def size_of(pids: Iterable[int]) -> int:
    """Return how many bytes of a tree's memory cross in the freeze whatever the mode is.

    Files in memory that move along are not among them.
    """
    objects: dict[tuple[int, int], int] = {}
    size = 0
    for pid in pids:
        with contextlib.suppress(*VANISHED):
            size += _of_one(pid, objects)
    return size + sum(objects.values())


def _of_one(pid: int, objects: dict[tuple[int, int], int]) -> int:
    """Return the bytes of one process alone, and add the objects of shared memory that it has."""
    size = 0
    for area in areas(read(f"{PROC}/{pid}/smaps")):
        if area.is_shared_memory:
            _add(objects, Path(behind(pid, area.bounds)))
        elif not area.is_left_for_later:
            size += area.own_bytes
    for link in (PROC / str(pid) / "fd").iterdir():
        with contextlib.suppress(*VANISHED):
            if str(link.readlink()).startswith(MEMORY):
                _add(objects, link)
    return size


def areas(smaps: str) -> Iterator[Area]:
    """Yield the mappings of a process."""
    area: Area | None = None
    for line in smaps.splitlines():
        first, *rest = line.split(maxsplit=5)
        if first.endswith(":"):
            assert area is not None
            area.figures[first[:-1]] = " ".join(rest)
            continue
        if area:
            yield area
        rights, _, device, inode, *path = rest
        area = Area(first, rights, device, inode, path[0] if path else "")
    if area:
        yield area


def _add(objects: dict[tuple[int, int], int], link: Path) -> None:
    """Add an object of shared memory once, with all that it holds, mapped here or not."""
    with contextlib.suppress(*VANISHED):
        found = link.stat()
        objects[found.st_dev, found.st_ino] = found.st_blocks * BLOCK_BYTES
