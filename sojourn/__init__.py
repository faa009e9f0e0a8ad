"""Sojourn moves running Linux processes between hosts without putting their memory on a disk.

from sojourn import migrate
result = migrate.delay(pid=4242, source="alpha", destination="beta")
result.get()["downtime_ms"]
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sojourn.client import drain, migrate, migrate_many
    from sojourn.model import Untyped

__version__ = "0.1.0"

__all__ = ["drain", "migrate", "migrate_many"]


def __getattr__(name: str) -> Untyped:
    """Return what programs call, which Sojourn's own programs need not import."""
    if name in __all__:
        import sojourn.client  # noqa: PLC0415

        return getattr(sojourn.client, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
