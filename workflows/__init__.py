"""What happens, in which order: the canvases, and the tasks that other programs call.

from workflows import migrate
result = migrate.delay(pid=4242, source="alpha", destination="beta")
result.get()["downtime_ms"]
"""

from workflows.batch import drain, migrate_many
from workflows.migrate import migrate

__all__ = ["drain", "migrate", "migrate_many"]
