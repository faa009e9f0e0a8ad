"""Where a process is that is not where somebody looks for it: the ledger knows what moved it."""

from __future__ import annotations

from itertools import islice

from sojourn.cluster.account import Account
from sojourn.cluster.ledger import Ledger

#: How many of the newest migrations are searched.
SEARCHED = 2000


def last_move(ledger: Ledger, pid: int, host: str) -> Account | None:
    """Return the migration that brought a process, once on ``host``, to where it is now.

    None if none moved it away, or it came back. A process keeps its PID when it moves, but a PID
    can be that of another process later: this is for people, and decides nothing. Raises
    StoreUnreachable.
    """
    moves = [
        account
        for account in islice(ledger.newest(), SEARCHED)
        if account.plan.pid == pid and account.state.arrived
    ]
    where, last = host, None
    for move in reversed(moves):
        if move.plan.source == where:
            where, last = move.plan.destination, move
    return last if where != host else None
