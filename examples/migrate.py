"""Migrate one process from a program: ``python examples/migrate.py PID SOURCE DESTINATION``.

Needs settings as the command line does: /etc/sojourn/sojourn.toml, or another file named in
SOJOURN_CONFIG.
"""

from __future__ import annotations

import sys

from sojourn import migrate
from sojourn.errors import MigrationError


def main(pid: str, source: str, destination: str) -> int:
    """Migrate, print the downtime, and return the exit code."""
    try:
        result = migrate.delay(pid=int(pid), source=source, destination=destination).get()
    except MigrationError as error:
        sys.stderr.write(f"{error.state}: {error.message}\n{error.hint}\n")
        return 1
    sys.stdout.write(
        f"{result['owner']} runs it; the downtime was {result['downtime_ms']:.0f} ms\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
