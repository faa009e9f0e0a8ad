"""``migrate``: the task that other programs call for one process."""

from __future__ import annotations

from celery import shared_task
from celery.exceptions import Ignore

from sojourn.cluster.queue import Entry
from sojourn.errors import SojournError, UsageError
from sojourn.migration.context import this_host
from sojourn.model import Json, Plan, Untyped
from sojourn.state.message import Message
from workflows.answer import not_begun
from workflows.audit import caller_of
from workflows.call import Call
from workflows.dispatch import dispatch


@shared_task(name="sojourn.migrate", bind=True, base=Call)
def migrate(self: Untyped, **asked: Untyped) -> None:
    """Migrate a process: ``migrate.delay(pid=4242, source="alpha", destination="beta").get()``.

    It goes by way of the queue, as a batch of its own, and begins at once if there is room on both
    hosts.

    The options are the fields of ``sojourn.model.Plan``, which checks them. The id of the task is
    the id of the migration. The result is stored by ``conclude`` when both hosts have come to rest:
    the finished migration as a plain dict, or MigrationError. Malformed options raise UsageError.
    """
    host, caller = this_host(), caller_of(self.request)
    message = _checked(self.request, asked)
    what, account = message.plan.describe(), host.ledger.account(message.id)
    if account and account.state.definite:
        raise Ignore  # it was aborted while this message was queued
    if account is None:
        host.ledger.open(message.id, message.plan)
    host.ledger.record_caller(message.id, str(caller))
    try:
        host.registry.check(message.plan)
    except SojournError as error:
        host.audit.record(caller, "migrate", message.id, what, error.message)
        not_begun(self.app, message, error)
        raise Ignore from None
    host.audit.record(caller, "migrate", message.id, what)
    host.queue.put([Entry(message.id, message.id, message.plan.to_json())])
    dispatch()
    # Celery then stores no result for this task; ``conclude`` will, under the same id.
    raise Ignore


def _checked(request: Untyped, asked: Json) -> Message:
    """Return the migration that was asked for. Raises UsageError, which is recorded too."""
    host = this_host()
    try:
        return Message(request.id, Plan.from_json({**host.settings.limits, **asked}))
    except UsageError as error:
        host.audit.record(caller_of(request), "migrate", request.id, "", error.message)
        raise
