"""What each host knows of when it did what in a migration, as its worker reads it."""

from __future__ import annotations

from collections.abc import Collection

from celery import shared_task

from sojourn.migration import trace
from sojourn.migration.context import this_host
from sojourn.migration.trace import Trace
from sojourn.model import Json
from workflows.ask import ask_all
from workflows.call import Call

#: How long the hosts may take to read their journals and logs, their queues included.
TRACE_S = 15.0


@shared_task(name="sojourn.trace", base=Call)
def read_trace(migration: str) -> Json:
    """Return this host's trace of a migration, empty if its journal has none of that id."""
    found = trace.of(this_host(), migration)
    return found.to_json() if found else {}


def traces_of(migration: str, hosts: Collection[str]) -> dict[str, Trace | None]:
    """Ask hosts, all at once, for their traces; None for one that does not answer.

    A host that answers and does not know the migration has an empty one.
    """
    answers = ask_all(hosts, read_trace, migration, within_s=TRACE_S)
    return {
        host: None if found is None else Trace.from_json(found) if found else Trace(host, ())
        for host, found in answers.items()
    }
