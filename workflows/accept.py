"""What workers do with the calls of other programs (``sojourn.client``): they are queued.

Only workers import this module: other programs have tasks of the same names, which send these.
"""

from __future__ import annotations

import time

from celery import shared_task
from celery.exceptions import Ignore

from sojourn.cluster.planfile import from_json, lines_of_drain, times_of
from sojourn.cluster.queue import Entry
from sojourn.errors import SojournError, UsageError
from sojourn.messaging import names
from sojourn.messaging.client import the_cluster
from sojourn.migration.context import Host, this_host
from sojourn.model import Json, Plan, Untyped
from sojourn.state.message import Message
from workflows.answer import not_begun
from workflows.audit import audited, caller_of
from workflows.batch import DRAIN, PLAN, plan_batch, stop
from workflows.dispatch import dispatch
from workflows.recover import give_up


@shared_task(name=names.MIGRATE, bind=True)
def migrate(self: Untyped, **asked: Untyped) -> None:
    """Queue a migration as a batch of its own; it begins at once if there is room on both hosts.

    The options are the fields of ``sojourn.model.Plan``, which checks them. The id of the task is
    the id of the migration. The result is stored by ``conclude`` when both hosts have come to rest:
    the finished migration as a plain dict, or MigrationError. Malformed options raise UsageError.
    If this worker dies before the migration is queued, it never begins.
    """
    host, caller = this_host(), caller_of(self.request)
    message = _checked(self.request, asked)
    what, account = message.plan.describe(), host.ledger.account(message.id)
    if account and account.state.definite:
        raise Ignore  # it was aborted while this message was queued
    if account is None or account.plan != message.plan:
        host.ledger.open(message.id, message.plan)
    host.ledger.record_caller(message.id, str(caller))
    try:
        host.registry.check(message.plan)
    except SojournError as error:
        host.audit.record(caller, "migrate", message.id, what, error.message)
        not_begun(self.app, message, error)
        raise Ignore from None
    host.audit.record(caller, "migrate", message.id, what)
    host.queue.put([_entry(host, message)])
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


def _entry(host: Host, message: Message) -> Entry:
    """Return a migration for the queue, where it waits for the time that its caller asked for."""
    begins = host.requests.of(message.id).not_before
    delay_s = max(0.0, begins - time.time()) if begins is not None else 0.0
    return Entry(message.id, message.id, message.plan.to_json(), delay_s=delay_s)


@shared_task(name=names.MIGRATE_MANY, bind=True)
def migrate_many(
    self: Untyped, plan: list[Json], by: str = "", timeout_s: float | None = None
) -> None:
    """Plan the batch of these lines, which are as in a plan file (``sojourn.cluster.planfile``).

    Nothing begins if one of them is malformed: UsageError names all that are. The result is stored
    when the last part has ended: what each migration came to; those that failed raise nothing.
    """
    caller = caller_of(self.request)
    with audited(caller, "migrate many", self.request.id):
        times = times_of(until=timeout_s)
        plan_batch(self.request.id, PLAN, plan, by or str(caller), times)
    raise Ignore


@shared_task(name=names.DRAIN, bind=True)
def drain(
    self: Untyped,
    host: str,
    by: str = "",
    skip: list[Json] | None = None,
    timeout_s: float | None = None,
    wait_s: float | None = None,
    **options: Untyped,
) -> None:
    """Cordon a host, and plan the batch of all that can be moved away from it.

    ``options`` are fields of a Plan; ``skip`` are selectors, such as ``{"unit": "nginx"}``, of what
    shall stay. After ``timeout_s`` seconds nothing more begins; for ``wait_s`` seconds, what no
    host can take waits for one that can. The result names what stays there and why.
    """
    caller = caller_of(self.request)
    with audited(caller, "drain", self.request.id, str(host)):
        # Before the cordon: a malformed request changes nothing.
        lines = lines_of_drain(host, skip, **options)
        from_json(lines)
        times = times_of(until=timeout_s, waits=wait_s)
        this_host().registry.cordon(host)
        plan_batch(self.request.id, DRAIN, lines, by or str(caller), times)
    raise Ignore


@shared_task(name=names.REVOKE, bind=True, ignore_result=True)
def revoke(self: Untyped, about: str, *, terminate: bool) -> None:
    """Give up a migration, or a batch; with ``terminate`` those of it that are under way too.

    What has ended stays as it is. If this worker dies, nothing more is given up.
    """
    host, caller = this_host(), caller_of(self.request)
    account = host.ledger.account(about)
    if account is None:
        if host.batches.record(about):
            stop(about, roll_back=terminate, by=caller)
    elif not account.state.definite:
        message = Message(about, account.plan)
        give_up(the_cluster(), message, f"Revoked by {caller}.", by=str(caller))
