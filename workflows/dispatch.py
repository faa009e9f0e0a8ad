"""Begins what waits in the queue, as long as there is room for it.

The process that queues a migration calls ``dispatch``, and so does the one that ends one, so no
message is needed. If that process dies, the reconcilers call it too, every few seconds. The queue
delivers at least once: what has begun or ended already is not begun again, and a message that comes
twice does nothing twice.
"""

from __future__ import annotations

import logging

from sojourn.cluster.queue import Taken
from sojourn.errors import StoreUnreachable
from sojourn.migration.context import Host, this_host
from sojourn.model import Plan
from sojourn.state.message import Message
from workflows.join import concluded
from workflows.start import begin

log = logging.getLogger("sojourn.dispatch")


def dispatch() -> int:
    """Begin every migration for which there is room, and return how many began.

    Raises StoreUnreachable.
    """
    host = this_host()
    begun = 0
    while taken := host.queue.take(host.name, host.settings.max_migrations):
        begun += _begin(host, taken)
    return begun


def make_room(migration: str) -> None:
    """Free the places of a migration that has ended, and begin what there is room for now.

    If Redis is away, the migration's lease expires, and the reconcilers begin what waits.
    """
    try:
        this_host().queue.end(migration)
        dispatch()
    except StoreUnreachable as error:
        log.warning("The queue waits for the next look: %s", error, extra={"migration": migration})


def _begin(host: Host, taken: Taken) -> bool:
    """Begin a migration that the queue gave out; False if it has begun already, or cannot begin."""
    message = Message(taken.entry.id, Plan.from_json(taken.entry.plan))
    account = host.ledger.account(message.id)
    if account and account.state.definite:
        # The process that recorded this end may have died before it reported it to the batch.
        if account.result:
            concluded(account.part, account.result)
        host.queue.end(message.id)
        return False
    if account and account.steps:
        return False  # its hosts' journals know it: they move it on, and hold its places
    return begin(message, known=account is not None)
