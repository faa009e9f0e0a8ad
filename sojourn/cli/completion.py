"""What the shell may complete from the cluster: names of hosts, ids of migrations and batches.

Somebody presses a key and waits: Redis is asked with a short timeout, and what it does not answer is not completed.
Nothing is said about that, since the shell would write it into the line.
"""

from __future__ import annotations

from collections.abc import Iterable

from sojourn.batch import INDEX as BATCHES
from sojourn.errors import SojournError
from sojourn.ledger import INDEX as MIGRATIONS
from sojourn.planfile import AUTO
from sojourn.registry import KNOWN
from sojourn.settings import load
from sojourn.store import Store

#: How long Redis may take to accept the connection, and to answer.
TIMEOUT_S = 0.2

#: How many of the newest migrations or batches are offered.
NEWEST = 50


def hosts(incomplete: str) -> list[str]:
    """Return the hosts that ever announced themselves and whose names begin so."""
    try:
        return _beginning(incomplete, sorted(_store().members(KNOWN)))
    except (SojournError, OSError):
        return []


def destinations(incomplete: str) -> list[str]:
    """Return where a migration may go: a host, or the best one."""
    return [*hosts(incomplete), *_beginning(incomplete, [AUTO])]


def migrations(incomplete: str) -> list[str]:
    """Return the newest migrations whose ids begin so."""
    return _newest(MIGRATIONS, incomplete)


def batches(incomplete: str) -> list[str]:
    """Return the newest batches whose ids begin so."""
    return _newest(BATCHES, incomplete)


def _newest(index: str, incomplete: str) -> list[str]:
    try:
        return _beginning(incomplete, _store().highest(index, NEWEST))
    except (SojournError, OSError):
        return []


def _store() -> Store:
    return Store.of(load(), TIMEOUT_S)


def _beginning(incomplete: str, words: Iterable[str]) -> list[str]:
    return [word for word in words if word.startswith(incomplete)]
