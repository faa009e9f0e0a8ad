"""The last link of every canvas: the end of a migration goes to the ledger and to whoever waits."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import asdict

from celery import shared_task

from sojourn.cluster.account import Account
from sojourn.cluster.registry import Pace, Window
from sojourn.errors import StoreUnreachable
from sojourn.migration.context import Host, this_host
from sojourn.migration.result import overrules, result_of
from sojourn.model import Failure, Json, Plan, State, Untyped
from sojourn.state.message import Message
from workflows.answer import answer, log_end
from workflows.dispatch import make_room
from workflows.join import concluded
from workflows.notify import on_end

#: How long the pace of a migration between two hosts is kept for estimates: thirty days.
PACE_KEPT_S = 30 * 86_400


@shared_task(name="sojourn.conclude", bind=True, ignore_result=True)
def conclude(self: Untyped, handed: str | Sequence[str]) -> None:
    """Close the account, and answer the caller. Safe to repeat.

    If this message is lost, the reconcilers record the end: both hosts' journals have it.
    """
    close(self.app, Message.handed(handed))


def close(app: Untyped, message: Message) -> Json:
    """Record what the migration came to, unless more is known already; return what stands."""
    ledger = this_host().ledger
    account = ledger.account(message.id)
    result = result_of(message, account)
    if message.facts.get("unsettled"):
        # It runs, and may be lost yet. Who settles it concludes, and may have done so already.
        if not (account and account.state.definite):
            ledger.record_state(message.id, State.RUNNING)
        return result
    if account and account.result and not overrules(State(result["state"]), account.state):
        # A caller that waits for an end must see one, even if theirs is the second.
        ledger.record_state(message.id, account.state)
        _leave_the_queue(account, account.result)
        return account.result
    on_end(account, result)  # before the ledger has it: what is owed must not be forgotten
    _enter(message, result)
    answer(app, account, result)
    _leave_the_queue(account, result)
    return result


def record_doubt(message: Message, why: str) -> None:
    """Record that the owner of the process is not known.

    It may stay so for long, so the migration gives up its places in the queue.
    """
    ledger = this_host().ledger
    ledger.record_doubt(message.id)
    account = ledger.account(message.id)
    failure = asdict(Failure("IN_DOUBT", why))
    doubt = {"state": State.IN_DOUBT, "owner": None, "failure": failure}
    result = {**result_of(message, account), **doubt}
    on_end(account, result)
    _leave_the_queue(account, result)


def _enter(message: Message, result: Json) -> None:
    ledger = this_host().ledger
    if result["failure"]:
        ledger.record_failure(message.id, Failure(**result["failure"]))
    ledger.close(message.id, result)
    log_end(message, result)
    _remember_pace(this_host(), message.plan, result)


def _leave_the_queue(account: Account | None, result: Json) -> None:
    """Report the end to the batch, and make room; without Redis the reconcilers do both later."""
    with contextlib.suppress(StoreUnreachable):
        concluded(account.part if account else None, result)
    make_room(result["id"])


def _remember_pace(host: Host, plan: Plan, result: Json) -> None:
    """Keep the pace of a migration that arrived, for estimates; not kept while Redis is away.

    Under a limit of the bandwidth it shows the limit, and not what lies between the two hosts. In
    post-copy it is that of the memory which comes after the freeze.
    """
    size, way = result["pages_bytes"], (plan.source, plan.destination)
    if not size or not result["frozen_ms"] or plan.bandwidth_mbit is not None:
        return
    with contextlib.suppress(StoreUnreachable):
        if not plan.post_copy:
            host.registry.remember(*way, Pace(size, result["frozen_ms"]), PACE_KEPT_S)
        elif result["settled_ms"]:
            window = Window(size, result["settled_ms"])
            host.registry.remember_window(*way, window, PACE_KEPT_S)
