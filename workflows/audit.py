"""What a host was asked, by whom: kept in its audit trail (``sojourn.cluster.audit``).

What a task does is recorded by the task. What a command does in Redis by itself, such as a cordon,
is recorded by a message to a host.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from celery import shared_task

from sojourn.cluster import audit
from sojourn.errors import SojournError
from sojourn.messaging.names import BY
from sojourn.migration.context import this_host
from sojourn.model import Json, Untyped
from sojourn.system.caller import Caller
from workflows.ask import ask
from workflows.call import Call
from workflows.canvas import queue_of

#: How long a host may take to read its trail, its queue included; and how many entries it answers.
READ_S, MOST = 15.0, 2_000


def caller_of(request: Untyped) -> Caller:
    """Return who asks for a task, as its message claims."""
    return Caller.of(request.get(BY))


@contextlib.contextmanager
def audited(caller: Caller, action: str, subject: str, what: str = "") -> Iterator[None]:
    """Record a request when its work was done, or why that was refused (any SojournError)."""
    trail = this_host().audit
    try:
        yield
    except SojournError as error:
        trail.record(caller, action, subject, what, error.message)
        raise
    trail.record(caller, action, subject, what)


@shared_task(name="sojourn.note", bind=True, base=Call, ignore_result=True)
def note(self: Untyped, action: str, subject: str, what: str = "") -> None:
    """Record what the caller has done in Redis."""
    this_host().audit.record(caller_of(self.request), action, subject, what)


@shared_task(name="sojourn.audit", base=Call)
def read_audit(since: float) -> list[Json]:
    """Return what this host has recorded since then, oldest first, at most the last ``MOST``."""
    return [vars(entry) for entry in this_host().audit.own(since)][-MOST:]


def note_of_host(action: str, host: str) -> None:
    """Have a host record what was done about it; one that is down finds it in its queue."""
    note.apply_async((action, host), queue=queue_of(host, frozen=False))


def note_of(action: str, subject: str, what: str = "") -> None:
    """Have any host record what was done about something that belongs to no host."""
    note.apply_async((action, subject, what))


def audit_of(host: str, since: float) -> list[audit.Entry]:
    """Ask a host for its own trail. Raises HostUnreachable."""
    answer = ask(host, read_audit, since, within_s=READ_S)
    return [audit.Entry(**entry) for entry in answer]
