"""Numbers as people read them: sizes, rates, spans of time, instants.

Sizes count in powers of 1000, as networks and disks do, so that a rate and a size can be compared.
"""

from __future__ import annotations

import time

#: From this size on, a smaller unit would take more than four digits, or a larger one would show 0.
GIGABYTES_FROM, MEGABYTES_FROM = 1e9, 1e5

#: From this many milliseconds on, people think in seconds.
SECONDS_FROM_MS = 10_000

#: From this many seconds on, what is left is shown in minutes.
MINUTES_FROM_S = 120


def size(size_bytes: float | None) -> str:
    """Return a size, or a dash where it is unknown."""
    if size_bytes is None:
        return "-"
    if size_bytes >= GIGABYTES_FROM:
        return f"{size_bytes / 1e9:.1f} GB"
    if size_bytes >= MEGABYTES_FROM:
        return f"{size_bytes / 1e6:.1f} MB"
    return f"{size_bytes / 1e3:.0f} kB"


def rate(bytes_per_s: float | None) -> str:
    """Return how fast memory crosses, or a dash where that is unknown."""
    return "-" if bytes_per_s is None else f"{size(bytes_per_s)}/s"


def span(elapsed_ms: float | None) -> str:
    """Return a measured span of time, or a dash where there is none."""
    if elapsed_ms is None:
        return "-"
    if elapsed_ms >= SECONDS_FROM_MS:
        return f"{elapsed_ms / 1000:.2f} s"
    return f"{elapsed_ms:.0f} ms"


def time_left(left_s: float | None) -> str:
    """Return an estimate of the time that is left, empty where there is none."""
    if left_s is None:
        return ""
    return f"{left_s:.0f} s" if left_s < MINUTES_FROM_S else f"{left_s / 60:.0f} min"


def moment(since_epoch_s: float) -> str:
    """Return an instant in this machine's time zone, which is named."""
    return time.strftime("%Y-%m-%d %H:%M:%S %Z", time.localtime(since_epoch_s))


def time_of_day(since_epoch_s: float) -> str:
    """Return an instant of today, by this machine's clock and time zone."""
    return time.strftime("%H:%M:%S", time.localtime(since_epoch_s))
