"""This host's own settings, asked once more before what can be left out no more.

``examine`` and ``preflight`` ask them first and refuse before anything is touched. But messages may
come that leave these steps out, and a tree may have changed after them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from sojourn.migration.context import Migration
from sojourn.model import Role
from sojourn.preflight import candidate, inspection, policy
from sojourn.preflight.finding import Finding


def check(migration: Migration) -> None:
    """Raise Refused if this host's settings do not permit the migration."""
    here = migration.host.name
    found = [replace(finding, host=here) for finding in _findings(migration)]
    inspection.refuse(found, migration.plan)


def _findings(migration: Migration) -> Iterator[Finding]:
    plan, settings = migration.plan, migration.host.settings
    if migration.role is Role.DESTINATION:
        yield from policy.may_come(plan, settings)
    elif policy.limits_leaving(settings):
        yield from policy.may_leave(plan, candidate.members_of(plan.pid), settings)
