"""How much memory this host has, and has free (proc_meminfo(5))."""

from __future__ import annotations

from pathlib import Path


def free_bytes() -> int:
    """Return how much memory can be taken without swapping: ``MemAvailable``."""
    return _bytes("MemAvailable:")


def total_bytes() -> int:
    """Return how much memory there is: ``MemTotal``."""
    return _bytes("MemTotal:")


def _bytes(key: str) -> int:
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))
