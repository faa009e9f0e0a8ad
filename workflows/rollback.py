"""The errback of every migration's canvas: undo everything."""

from __future__ import annotations

from celery import shared_task

from sojourn.migration.context import this_host
from sojourn.model import State
from sojourn.state.message import Message
from workflows.canvas import linked, send
from workflows.pipelines import PIPELINES


@shared_task(name="sojourn.roll_back", ignore_result=True)
def roll_back(handed: str) -> None:
    """Undo everything, whichever step failed; the hosts' journals decide what that means for each.

    If this message is lost, the reconcilers of both hosts settle the migration.
    """
    message = Message.from_text(handed)
    account = this_host().ledger.account(message.id)
    # An abort may have recorded the end already.
    if account is None or not account.state.definite:
        this_host().ledger.record_state(message.id, State.ROLLING_BACK)
    send(linked(PIPELINES[message.plan.mode].backward(), message), message.id)
