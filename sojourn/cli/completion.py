"""What the shell can complete from the cluster: names of hosts, ids of migrations and batches.

Somebody presses a key and waits: Redis is asked with a short timeout, and what it does not answer
is not completed. Errors are not reported, since the shell would write them into the line. What asks
Redis is imported only then, since every command with completion imports this module.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from sojourn.errors import SojournError
from sojourn.model import Plan, State

if TYPE_CHECKING:
    from sojourn.cluster.store import Store

#: How long Redis may take to accept the connection, and to answer.
TIMEOUT_S = 0.2

#: How many of the newest migrations or batches are offered.
NEWEST = 50


def hosts(incomplete: str) -> list[str]:
    """Return the hosts that ever announced themselves and whose names begin this way."""
    from sojourn.cluster.registry import KNOWN

    try:
        return _beginning(incomplete, sorted(_store().members(KNOWN)))
    except (SojournError, OSError):
        return []


def destinations(incomplete: str) -> list[str]:
    """Return the possible destinations: the hosts, and the word for the best one."""
    from sojourn.cluster.planfile import AUTO

    return [*hosts(incomplete), *_beginning(incomplete, [AUTO])]


def modes(incomplete: str) -> list[str]:
    """Return the modes of a migration."""
    return _beginning(incomplete, Plan.MODES)


def states(incomplete: str) -> list[str]:
    """Return the states of a migration, each as one word."""
    return _beginning(incomplete, (state.word for state in State))


def migrations(incomplete: str) -> list[str]:
    """Return the newest migrations whose ids begin this way."""
    from sojourn.cluster.ledger import INDEX

    return _newest(INDEX, incomplete)


def batches(incomplete: str) -> list[str]:
    """Return the newest batches whose ids begin this way."""
    from sojourn.cluster.batches import INDEX

    return _newest(INDEX, incomplete)


def _newest(index: str, incomplete: str) -> list[str]:
    try:
        return _beginning(incomplete, _store().highest(index, NEWEST))
    except (SojournError, OSError):
        return []


def _store() -> Store:
    from sojourn.cluster.store import Store
    from sojourn.settings import load

    return Store.of(load(), TIMEOUT_S)


def _beginning(incomplete: str, names: Iterable[str]) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]
