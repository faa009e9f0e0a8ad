"""Sojourn as an application of Celery, for ``celery -A sojourn.celery status`` and ``inspect``.

``app`` is made when it is asked for: an import reads no settings, and connects to nothing.
"""

from __future__ import annotations

from sojourn.model import Untyped


def __getattr__(name: str) -> Untyped:
    """Return ``app``. Raises UsageError for settings that are wrong."""
    if name == "app":
        from sojourn.messaging.client import the_client  # noqa: PLC0415

        return the_client()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
