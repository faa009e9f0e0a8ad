"""Begins one migration whose turn has come: its canvas is sent."""

from __future__ import annotations

import time

from sojourn.errors import Expired, SojournError
from sojourn.migration.context import Host, this_host
from sojourn.model import State
from sojourn.state.message import Message
from workflows.answer import not_begun
from workflows.app import the_app
from workflows.canvas import forward, send
from workflows.pipelines import PIPELINES


def begin(message: Message, *, known: bool) -> bool:
    """Send a migration's canvas; False if its hosts have changed so that it cannot begin.

    ``known``: the ledger has its account. Raises StoreUnreachable.
    """
    host = this_host()
    if not known:
        host.ledger.open(message.id, message.plan)
    try:
        _check_time(host, message.id)
        host.registry.check(message.plan)
    except SojournError as error:
        not_begun(the_app(), message, error)
        return False
    # Recorded when it is sent: if Redis takes no messages, the migration still waits in the queue.
    send(forward(PIPELINES[message.plan.mode], message), message.id)
    host.ledger.record_state(message.id, State.RUNNING)
    return True


def _check_time(host: Host, migration: str) -> None:
    """Raise Expired for a migration whose caller would have it begin earlier or not at all."""
    until = host.requests.of(migration).until
    if until is not None and time.time() > until:
        raise Expired("It had not begun by the time that its caller set; nothing was touched.")
