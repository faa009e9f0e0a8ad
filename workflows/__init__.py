"""What happens, in which order. ``migrate``, ``migrate_many`` and ``drain`` are what other programs call.

from workflows import migrate
result = migrate.delay(pid=4242, source="alpha", destination="beta")
result.get()["downtime_ms"]
"""

from workflows.batch import drain, migrate_many
from workflows.migrate import migrate

__all__ = ["drain", "migrate", "migrate_many"]
