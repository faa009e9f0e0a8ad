"""Total and available memory of this host (proc_meminfo(5))."""

from __future__ import annotations

from pathlib import Path


def free_bytes() -> int:
    """Return how much memory can be used without swapping: ``MemAvailable``."""
    return _bytes("MemAvailable:")


def total_bytes() -> int:
    """Return how much memory the host has: ``MemTotal``."""
    return _bytes("MemTotal:")


def shared_bytes(pid: int) -> int:
    """Return how much of a process's own memory others count for: shared since a fork.

    It is what each of them has, less the share that it alone counts for (``Pss_Anon``), so that the
    sum over all of them is what there would be more without sharing. 0 for a process that is gone.
    """
    rollup = Path(f"/proc/{pid}/smaps_rollup")
    try:
        return _bytes("Anonymous:", rollup) - _bytes("Pss_Anon:", rollup)
    except (OSError, StopIteration):  # a zombie has none
        return 0


def _bytes(key: str, file: Path = Path("/proc/meminfo")) -> int:
    lines = file.read_text().splitlines()
    # The kernel writes ``kB`` and means 1024 bytes.
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))
