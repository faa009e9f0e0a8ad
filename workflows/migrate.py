"""``migrate``: the task that other programs call for one process."""

from __future__ import annotations

from celery import shared_task
from celery.exceptions import Ignore

from sojourn.cluster.queue import Entry
from sojourn.errors import SojournError
from sojourn.migration.context import this_host
from sojourn.model import Plan, Untyped
from sojourn.state.message import Message
from workflows.answer import not_begun
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
    host = this_host()
    plan = Plan.from_json({**host.settings.limits, **asked})
    message = Message(self.request.id, plan)
    account = host.ledger.account(message.id)
    if account and account.state.definite:
        raise Ignore  # it was aborted while this message was queued
    if account is None:
        host.ledger.open(message.id, message.plan)
    try:
        host.registry.check(message.plan)
    except SojournError as error:
        not_begun(self.app, message, error)
        raise Ignore from None
    host.queue.put([Entry(message.id, message.id, message.plan.to_json())])
    dispatch()
    # Celery then stores no result for this task; ``conclude`` will, under the same id.
    raise Ignore
