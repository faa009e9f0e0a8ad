"""What a migration will cost: bytes to move, and times from the last one between the same two hosts."""

from __future__ import annotations

from dataclasses import dataclass

from sojourn.registry import Pace

#: What a freeze takes that has nothing to do with the size of the tree, and what the steps around it take.
FIXED_FREEZE_MS = 200
AROUND_MS = 400

#: What one byte takes where nothing was measured yet: 400 MB per second.
UNMEASURED_MS_PER_BYTE = 1000 / 400e6


@dataclass(frozen=True)
class Estimate:
    """What to expect of one mode. ``bytes_per_s`` is None where nothing was measured between the two hosts."""

    mode: str
    move_bytes: int
    freeze_ms: float
    total_ms: float
    bytes_per_s: float | None


def estimate(mode: str, tree_bytes: int, last: Pace | None) -> Estimate:
    """Return what to expect; in ``stop-and-copy`` all memory is sent while the tree is frozen."""
    per_byte = UNMEASURED_MS_PER_BYTE
    if last:
        per_byte = max(last.frozen_ms - FIXED_FREEZE_MS, 1) / last.pages_bytes
    freeze_ms = FIXED_FREEZE_MS + tree_bytes * per_byte
    return Estimate(mode, tree_bytes, round(freeze_ms), round(freeze_ms + AROUND_MS), 1000 / per_byte if last else None)
