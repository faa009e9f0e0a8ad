"""What happens, in which order. ``migrate`` is what other programs call.

from workflows import migrate
result = migrate.delay(pid=4242, source="alpha", destination="beta")
result.get()["downtime_ms"]
"""

from workflows.migrate import migrate

__all__ = ["migrate"]
