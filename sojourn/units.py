"""Numbers as people read them: counts, sizes, rates, spans of time, instants.

Sizes count in powers of 1000, as networks and disks do, so that a rate and a size can be compared.
"""

from __future__ import annotations

import time

#: From this size on, a smaller unit would take more than four digits, or a larger one would show 0.
TERABYTES_FROM, GIGABYTES_FROM, MEGABYTES_FROM, KILOBYTES_FROM = 1e12, 1e9, 1e5, 1e3

#: From this many milliseconds on, people think in seconds, and then in minutes.
SECONDS_FROM_MS, MINUTES_FROM_MS = 10_000, 600_000

#: From this many seconds on, what is left is shown in minutes.
MINUTES_FROM_S = 120


def counted(number: int, noun: str, plural: str = "") -> str:
    """Return a number of things, as ``1 process`` or ``2 processes``.

    ``plural`` is for a noun that takes more than an s.
    """
    return f"{number} {noun}" if number == 1 else f"{number} {plural or f'{noun}s'}"


def processes(number: int) -> str:
    """Return a number of processes."""
    return counted(number, "process", "processes")


def size(size_bytes: float | None) -> str:
    """Return a size, or a dash where it is unknown."""
    if size_bytes is None:
        return "-"
    if size_bytes >= TERABYTES_FROM:
        return f"{size_bytes / 1e12:.1f} TB"
    if size_bytes >= GIGABYTES_FROM:
        return f"{size_bytes / 1e9:.1f} GB"
    if size_bytes >= MEGABYTES_FROM:
        return f"{size_bytes / 1e6:.1f} MB"
    if 0 < size_bytes < KILOBYTES_FROM:
        return f"{size_bytes:.0f} B"
    return f"{size_bytes / 1e3:.0f} kB"


def rate(bytes_per_s: float | None) -> str:
    """Return how fast memory crosses, or a dash where that is unknown."""
    return "-" if bytes_per_s is None else f"{size(bytes_per_s)}/s"


def span(elapsed_ms: float | None) -> str:
    """Return a measured span of time, or a dash where there is none."""
    if elapsed_ms is None:
        return "-"
    if elapsed_ms >= MINUTES_FROM_MS:
        return f"{elapsed_ms / 60_000:.0f} min"
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


def when(since_epoch_s: float) -> str:
    """Return an instant for a table: of today without the date, of earlier days to the minute."""
    then, today = time.localtime(since_epoch_s), time.localtime()
    is_today = then[:3] == today[:3]
    return time.strftime("%H:%M:%S %Z" if is_today else "%Y-%m-%d %H:%M %Z", then)


def timestamp(since_epoch_s: float) -> str:
    """Return an instant for programs, in UTC (RFC 3339): these sort by time as texts."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(since_epoch_s))
