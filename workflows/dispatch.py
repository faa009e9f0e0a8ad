"""Begins what waits in the queue, as long as there is room for it.

Whoever brings a migration to the queue calls ``dispatch``, and so does whoever ends one: in its own process, so that no
message is needed. If that process dies, the reconcilers call it too, every few seconds. Handing out is at least once:
what has begun or ended already is not begun again, and a message that comes twice does nothing twice.
"""

from __future__ import annotations

import logging

from sojourn.errors import StoreUnreachable
from sojourn.host import Host, this_host
from sojourn.model import Message, Plan
from sojourn.queue import Taken
from workflows.join import concluded

log = logging.getLogger("sojourn.dispatch")


def dispatch() -> int:
    """Begin every migration for which there is room; return how many began. Raises StoreUnreachable."""
    host = this_host()
    begun = 0
    while taken := host.queue.take(host.name, host.settings.max_migrations):
        begun += _begin(host, taken)
    return begun


def make_room(migration: str) -> None:
    """Give back the places of a migration that has come to its end, and begin what there is room for now.

    If Redis is away, its lease expires, and the reconcilers begin what waits.
    """
    try:
        this_host().queue.end(migration)
        dispatch()
    except StoreUnreachable as error:
        log.warning("The queue waits for the next look: %s", error, extra={"migration": migration})


def _begin(host: Host, taken: Taken) -> bool:
    """Begin a migration that was handed out; False if there is nothing to begin, or nothing that could."""
    message = Message(taken.entry.id, Plan.from_json(taken.entry.plan))
    account = host.ledger.account(message.id)
    if account and account.state.definite:
        if account.result:
            concluded(account.part, account.result)  # whoever told this end may have died before he told the batch
        host.queue.end(message.id)
        return False
    if account and account.steps:
        return False  # its hosts' journals know it: they move it on, and hold its places
    from workflows.migrate import begin  # noqa: PLC0415  (the table's module knows this one)

    return begin(message, known=account is not None)
