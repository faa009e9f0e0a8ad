"""The end of a migration as people and programs see it: the log, ``.get()``, the batch."""

from __future__ import annotations

import logging
from dataclasses import asdict

from celery import states

from sojourn.cluster.account import Account
from sojourn.errors import Aborted, HostUnreachable, SojournError
from sojourn.migration.context import this_host
from sojourn.migration.result import error_of, result_of
from sojourn.model import Failure, Json, State, Untyped
from sojourn.state.message import Message
from workflows.join import concluded
from workflows.notify import on_end
from workflows.outcome import store

log = logging.getLogger("sojourn.conclude")


def log_end(message: Message, result: Json) -> None:
    """Log what a migration came to, as one event."""
    why = f": {result['failure']['message']}" if result["failure"] else ""
    state = str(result["state"])
    context = {"migration": message.id, "host": this_host().name, "step": "conclude", "to": state}
    log.info("%s: %s%s", message.plan.describe(), state, why, extra=context)


def answer(app: Untyped, account: Account | None, result: Json) -> None:
    """Make ``.get()`` return the result, or raise MigrationError for one that did not arrive.

    A part of a batch has no caller of its own: the batch answers.
    """
    if account and account.part:
        return
    outcome = result if State(result["state"]).arrived else error_of(result)
    store(app, result["id"], outcome, _celery_state(result), (result["total_ms"] or 0) / 1000)


def _celery_state(result: Json) -> str:
    """Return what Celery calls the end; what was withdrawn before it began is revoked."""
    state = State(result["state"])
    if state.arrived:
        return str(states.SUCCESS)
    withdrawn = state is State.ABORTED and not result["steps"]
    return str(states.REVOKED if withdrawn else states.FAILURE)


def not_begun(app: Untyped, message: Message, error: SojournError) -> None:
    """Record the end of a migration that cannot even begin, and answer its caller and its batch."""
    host = this_host()
    ends = {HostUnreachable: State.UNREACHABLE, Aborted: State.ABORTED}
    found = (state for kind, state in ends.items() if isinstance(error, kind))
    state = next(found, State.REFUSED)
    failure = asdict(Failure(error.code, error.message, error.hint))
    end = {"state": state, "owner": message.plan.source, "failure": failure}
    result = {**result_of(message, None), **end}
    account = host.ledger.account(message.id)
    on_end(account, result)
    host.ledger.close(message.id, result)
    log_end(message, result)
    answer(app, account, result)
    concluded(account.part if account else None, result)
    # Last: if this process dies before, the lease expires, and whoever takes the migration next
    # finds its end in the ledger and reports it.
    host.queue.end(message.id)
