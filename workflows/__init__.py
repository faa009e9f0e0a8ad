"""What happens, in which order: the canvases, and what serves the calls of other programs.

from workflows import migrate
result = migrate.delay(pid=4242, source="alpha", destination="beta")
result.get()["downtime_ms"]
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sojourn.client import drain, migrate, migrate_many
    from sojourn.model import Untyped

__all__ = ["drain", "migrate", "migrate_many"]


def __getattr__(name: str) -> Untyped:
    """Return what ``sojourn`` has by these names, which workers never import."""
    if name in __all__:
        import sojourn.client  # noqa: PLC0415  (see above)

        return getattr(sojourn.client, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
