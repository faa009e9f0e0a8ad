"""Room on the destination: memory for the tree and its images, and PIDs for its processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from sojourn.preflight.finding import Finding, blocks, ok
from sojourn.system import memory
from sojourn.transfer.image_directory import size_for

#: Where the kernel shows cgroups of version 2.
CGROUPS = Path("/sys/fs/cgroup")

NO_LIMIT = 2**63


def check(
    tree_bytes: int, private_bytes: int, tasks: int, *, cap_bytes: int | None
) -> Iterator[Finding]:
    """Yield whether this host has room; ``cap_bytes`` is the cap for an image directory, if any.

    The step ``reserve`` refuses by the same calculation. Pages are freed from the images as the
    restore reads them, so tree and images together need little more. ``private_bytes`` is the part
    of the tree's memory that is certainly sent; the rest is shared between its processes and may
    have been counted more than once.
    """
    needed = size_for(tree_bytes)
    free = min(memory.free_bytes(), _left("memory.max", "memory.current", _cache))
    if needed > free:
        yield blocks(
            "NO_ROOM",
            f"{_mb(free)} of memory are free; the tree and its images need {_mb(needed)}.",
            "Choose another destination, or free memory there.",
        )
    elif cap_bytes is not None and private_bytes > cap_bytes:
        yield blocks(
            "NO_ROOM",
            f"The images of one migration may take {_mb(cap_bytes)} on this host; the tree has "
            f"{_mb(private_bytes)}.",
            "Raise or remove `images_bytes` in the destination's settings.",
        )
    else:
        yield ok("NO_ROOM", f"{_mb(free)} of memory are free, {_mb(needed)} are needed")
    left = min(_free_pids(), _left("pids.max", "pids.current"))
    if tasks > left:
        yield blocks(
            "PIDS_EXHAUSTED",
            f"{left} PIDs are left; the tree has {tasks} processes and threads.",
            "Raise kernel.pid_max, kernel.threads-max or the limit of the worker's cgroup.",
        )


def _free_pids() -> int:
    """Return how many more tasks this host can have; ``/proc/loadavg`` counts those it has."""
    # Each thread takes a number below ``pid_max`` and counts in ``threads-max``.
    limits = (
        int(Path(f"/proc/sys/kernel/{name}").read_text()) for name in ("pid_max", "threads-max")
    )
    return min(limits) - int(Path("/proc/loadavg").read_text().split()[3].split("/")[1])


def _left(limit: str, used: str, spare: Callable[[Path], int] = lambda _: 0) -> int:
    """Return what the limits of the worker's cgroup and its ancestors leave.

    Restored processes join the worker's cgroup.
    """
    lines = Path("/proc/self/cgroup").read_text().splitlines()
    # A host that has cgroups of version 1 only has no such line.
    path = next((line.removeprefix("0::/") for line in lines if line.startswith("0::/")), None)
    if path is None:
        return NO_LIMIT
    groups = [
        place
        for place in (CGROUPS / path, *(CGROUPS / path).parents)
        if place.is_relative_to(CGROUPS)
    ]
    return min((_one_left(place, limit, used) + spare(place) for place in groups), default=NO_LIMIT)


def _one_left(group: Path, limit: str, used: str) -> int:
    try:
        most = (group / limit).read_text().strip()
        return NO_LIMIT if most == "max" else int(most) - int((group / used).read_text())
    except OSError:
        return NO_LIMIT


def _cache(group: Path) -> int:
    """Return how much of a cgroup's memory is page cache, which the kernel can drop."""
    try:
        rows = (line.split() for line in (group / "memory.stat").read_text().splitlines())
        return sum(int(row[1]) for row in rows if row[0] in {"active_file", "inactive_file"})
    except OSError:
        return 0


def _mb(size: int) -> str:
    return f"{size // 2**20} MB"
