"""Numbers as people read them: sizes, rates, spans of time."""

from __future__ import annotations

import time


def size(size_bytes: float | None) -> str:
    """Return a size."""
    if size_bytes is None:
        return "-"
    if size_bytes >= 1e9:
        return f"{size_bytes / 1e9:.1f} GB"
    return f"{size_bytes / 1e6:.1f} MB" if size_bytes >= 1e5 else f"{size_bytes / 1e3:.0f} kB"


def rate(bytes_per_s: float | None) -> str:
    """Return how fast something crosses."""
    return "-" if bytes_per_s is None else f"{size(bytes_per_s)}/s"


def span(elapsed_ms: float | None) -> str:
    """Return a span of time."""
    if elapsed_ms is None:
        return "-"
    return f"{elapsed_ms / 1000:.2f} s" if elapsed_ms >= 10_000 else f"{elapsed_ms:.0f} ms"


def moment(seconds: float) -> str:
    """Return an instant, by this machine's clock and zone."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
