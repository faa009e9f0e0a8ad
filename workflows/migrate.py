"""The whole migration, as one table.

Read it from top to bottom: what is done, where, and how it is undone. The freeze is between ``dump`` and
``restore``; the commit is inside ``restore`` (``sojourn/commit.py``). Each step is a module of ``tasks``. Rows that
follow each other on one host are one leg, which one message begins: the hosts take turns, five times.
"""

from __future__ import annotations

from typing import Any

from celery import shared_task
from celery.exceptions import Ignore

from sojourn.errors import SojournError
from sojourn.host import this_host
from sojourn.model import Message, Plan, State
from sojourn.queue import Entry
from tasks.copy_images import copy_images
from tasks.dump import dump, resume
from tasks.examine import examine
from tasks.page_server import page_server, stop_page_server
from tasks.preflight import preflight
from tasks.reserve import release, reserve
from tasks.restore import refuse, restore
from tasks.retire import retire
from workflows.app import the_app
from workflows.call import Call
from workflows.canvas import backward, forward, send
from workflows.conclude import conclude, not_begun
from workflows.dispatch import dispatch
from workflows.pipeline import DESTINATION, SOURCE, Pipeline, Step

STOP_AND_COPY = Pipeline(
    Step(examine, SOURCE),
    Step(preflight, DESTINATION),  # says no for both hosts
    Step(reserve, DESTINATION, undo=release),
    Step(page_server, DESTINATION, undo=stop_page_server),
    Step(reserve, SOURCE, undo=release),
    Step(dump, SOURCE, undo=resume),  # the freeze begins
    Step(copy_images, SOURCE),  # from here on the destination decides
    Step(restore, DESTINATION, undo=refuse, frozen=True),  # commits, and the freeze ends
    Step(release, DESTINATION),
    Step(retire, SOURCE),
    Step(release, SOURCE),
)

PIPELINES = {"stop-and-copy": STOP_AND_COPY}


@shared_task(name="sojourn.migrate", bind=True, base=Call)
def migrate(self: Any, **asked: Any) -> None:  # noqa: ANN401  (Celery has no types; Plan checks every argument)
    """Migrate a process: ``migrate.delay(pid=4242, source="alpha", destination="beta").get()``.

    It goes by way of the queue, as a batch of its own, and begins at once if there is room on both hosts.

    The options are the fields of ``sojourn.model.Plan``. The id of the task is the id of the migration. The result is
    stored by ``conclude`` when both hosts have come to rest: the finished migration as a plain dict, or MigrationError.
    Options that make no sense raise UsageError.
    """
    host = this_host()
    message = Message(self.request.id, Plan.from_json({"max_freeze_s": host.settings.max_freeze_s, **asked}))
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
    raise Ignore


def begin(message: Message, *, known: bool) -> bool:
    """Begin a migration whose turn has come; False if the hosts have changed while it waited, so that it can not."""
    host = this_host()
    if not known:
        host.ledger.open(message.id, message.plan)
    try:
        host.registry.check(message.plan)
    except SojournError as error:
        not_begun(the_app(), message, error)
        return False
    send(forward(PIPELINES[message.plan.mode], message, conclude, roll_back), message.id)
    host.ledger.tell_state(message.id, State.RUNNING)
    return True


@shared_task(name="sojourn.roll_back", ignore_result=True)
def roll_back(handed: str) -> None:
    """Undo everything, after whichever step failed; the hosts' journals decide what that means for each."""
    message = Message.from_text(handed)
    account = this_host().ledger.account(message.id)
    if account is None or not account.state.definite:  # an abort may have told its end already
        this_host().ledger.tell_state(message.id, State.ROLLING_BACK)
    send(backward(PIPELINES[message.plan.mode], message, conclude), message.id)
