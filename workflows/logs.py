"""The logs of one migration, as the worker of each host reads them; nothing is touched."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict

from celery import shared_task

from sojourn.criu import logs
from sojourn.criu.logs import Log
from sojourn.migration.context import this_host
from sojourn.model import Json, Role
from workflows.ask import ask_all
from workflows.call import Call

#: How long the hosts may take to read their logs, their queues included.
LOGS_S = 15.0


@shared_task(name="sojourn.logs", base=Call)
def read_logs(migration: str, only_errors: bool) -> list[Json]:
    """Return this host's logs of a migration.

    The id comes from outside and may be any path, so only that of a row of the journal is used.
    """
    host = this_host()
    if not any(host.journal.entry(migration, role) for role in Role):
        return []
    return [
        asdict(log) for log in logs.read(host.directory(migration).work, only_errors=only_errors)
    ]


def logs_of(
    migration: str, hosts: Collection[str], *, only_errors: bool
) -> dict[str, list[Log] | None]:
    """Ask hosts, all at once, for their logs of a migration; None for one that does not answer."""
    answers = ask_all(hosts, read_logs, migration, only_errors, within_s=LOGS_S)
    return {
        host: None if found is None else [Log(**log) for log in found]
        for host, found in answers.items()
    }
