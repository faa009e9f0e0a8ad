"""What a migration will cost in each mode, estimated from the last ones between two hosts."""

from __future__ import annotations

from dataclasses import dataclass

from sojourn.cluster.registry import Pace, Window
from sojourn.model import Plan
from sojourn.transfer.page_protocol import SHARES

#: The part of a freeze that does not depend on the size of the tree, and the time that the steps
#: before and after the freeze take.
FIXED_FREEZE_MS = 200
AROUND_MS = 400

#: The same in post-copy, and what each byte takes there that is left for later: CRIU notes each
#: page, 100 ms for a gigabyte. And how long the shortest window is.
POST_COPY_FREEZE_MS = 150
POST_COPY_AROUND_MS = 700
LEFT_MS_PER_BYTE = 100 / 1e9
SHORTEST_WINDOW_MS = 50

#: How much longer memory takes that crosses in the freeze of post-copy: CRIU writes it into a tmpfs
#: first, and only then it is sent, as in the classic procedure.
BY_A_TMPFS = 2

#: The time for one byte where nothing was measured yet: 400 MB per second.
UNMEASURED_MS_PER_BYTE = 1000 / 400e6

#: How much of the time for one byte is that of its way, where nothing limits it: the dump of 512 MB
#: takes about as long as its restore.
SHARE_OF_THE_WAY = 0.5


@dataclass(frozen=True)
class Estimate:
    """What to expect of one mode; ``bytes_per_s`` is None if nothing was measured.

    ``freeze_bytes`` cross while the tree is frozen. ``window_ms`` is how long both hosts are needed
    once the process runs: 0 but in post-copy.
    """

    mode: str
    move_bytes: int
    freeze_bytes: int
    freeze_ms: float
    window_ms: float
    total_ms: float
    bytes_per_s: float | None


@dataclass(frozen=True)
class Measured:
    """What the last ones between the two hosts took that had no limit; None where there was none.

    ``bytes_per_s`` is the limit of this one.
    """

    last: Pace | None = None
    window: Window | None = None
    bytes_per_s: int | None = None

    @property
    def ms_per_byte(self) -> float:
        """The time of a freeze for each byte that crosses in it."""
        if self.last is None:
            return UNMEASURED_MS_PER_BYTE
        return max(self.last.frozen_ms - FIXED_FREEZE_MS, 1) / self.last.pages_bytes

    @property
    def window_ms_per_byte(self) -> float:
        """The time of a window for each byte that comes in it."""
        if self.window is None:
            return self.ms_per_byte * SHARE_OF_THE_WAY
        return max(self.window.settled_ms - SHORTEST_WINDOW_MS, 1) / self.window.pages_bytes


def estimates(
    plan: Plan, tree_bytes: int, never_lazy_bytes: int, measured: Measured
) -> list[Estimate]:
    """Return what to expect of each mode, that of the plan first."""
    found = {
        "stop-and-copy": stop_and_copy(tree_bytes, measured),
        "post-copy": post_copy(tree_bytes, never_lazy_bytes, measured),
    }
    return [found.pop(plan.mode), *found.values()]


def stop_and_copy(tree_bytes: int, measured: Measured) -> Estimate:
    """Return what to expect where all memory crosses while the tree is frozen."""
    per_byte = measured.ms_per_byte
    freeze_ms = FIXED_FREEZE_MS + tree_bytes * _limited(per_byte, measured.bytes_per_s)
    return Estimate(
        mode="stop-and-copy",
        move_bytes=tree_bytes,
        freeze_bytes=tree_bytes,
        freeze_ms=round(freeze_ms),
        window_ms=0,
        total_ms=round(freeze_ms + AROUND_MS),
        bytes_per_s=1000 / per_byte if measured.last else None,
    )


def post_copy(tree_bytes: int, never_lazy_bytes: int, measured: Measured) -> Estimate:
    """Return what to expect where it crosses when the process runs, but what can never do so."""
    later = max(0, tree_bytes - never_lazy_bytes)
    per_byte = measured.ms_per_byte * BY_A_TMPFS
    in_freeze_ms = never_lazy_bytes * _limited(per_byte, measured.bytes_per_s)
    freeze_ms = POST_COPY_FREEZE_MS + later * LEFT_MS_PER_BYTE + in_freeze_ms
    per_byte = measured.window_ms_per_byte
    limit = measured.bytes_per_s
    slowest = max(per_byte, 1000 / (limit * SHARES["rest"])) if limit else per_byte
    window_ms = SHORTEST_WINDOW_MS + later * slowest
    return Estimate(
        mode="post-copy",
        move_bytes=tree_bytes,
        freeze_bytes=never_lazy_bytes,
        freeze_ms=round(freeze_ms),
        window_ms=round(window_ms),
        total_ms=round(freeze_ms + window_ms + POST_COPY_AROUND_MS),
        bytes_per_s=1000 / per_byte if measured.window else None,
    )


def _limited(per_byte: float, bytes_per_s: int | None) -> float:
    """Return the time for one byte, in ms, if only its way is limited, and not its restore."""
    if bytes_per_s is None:
        return per_byte
    way = per_byte * SHARE_OF_THE_WAY
    return per_byte - way + max(way, 1000 / bytes_per_s)
