"""What callers asked for beside a plan: when it may begin, and what another application is owed.

Keys:

``sojourn:request:<id>``  text: sealed JSON of Request, of a migration or a batch; expires some days
                          after it was written
``sojourn:owed``          sorted set: those that have ended, and whose callers are still to be sent
                          what follows, by the time of their end
``sojourn:owed:<id>``     text: present while a process sends it; expires

All of it can be lost without endangering a process: what should follow then does not. A request
without its seal is not there.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass

from sojourn.cluster import records
from sojourn.cluster.sealed import Sealed
from sojourn.cluster.store import Store

OWED = "sojourn:owed"

#: What a seal names a request.
REQUEST = "request"

#: For how long a process that sends what follows keeps others from it, in seconds; and how many
#: that are owed are looked at in one go.
SENDING_S, MOST_OWED = 10.0, 100


@dataclass(frozen=True)
class Request:
    """What was asked for beside the plan; times are seconds since the epoch, by the caller's clock.

    It does not begin before ``not_before``, and not at all after ``until``. ``follow_up`` is what
    another application is to be sent after the end (``sojourn.messaging.follow_up``).
    """

    not_before: float | None = None
    until: float | None = None
    follow_up: str | None = None


#: What most callers ask for.
NOTHING = Request()


class Requests:
    """Reads and writes requests. Every method raises StoreUnreachable if Redis does not answer."""

    def __init__(self, store: Store, keep_s: int) -> None:
        self._store, self._sealed = store, Sealed(store)
        self._keep_s = keep_s

    def keep(self, about: str, request: Request) -> None:
        """Keep a request of the migration or batch with this id, if it asks for anything."""
        if request != NOTHING:
            sealed = self._sealed.text(REQUEST, about, asdict(request))
            self._store.put(_key(about), sealed, expire_s=self._keep_s)

    def of(self, about: str) -> Request:
        """Return the request of a migration or batch, ``NOTHING`` if none is kept."""
        (text,) = self._store.values([_key(about)])
        asked = text and self._sealed.content(REQUEST, about, text, within_s=self._keep_s)
        return (records.of(Request, asked) if asked else None) or NOTHING

    def owe(self, about: str) -> None:
        """Record that what follows is to be sent."""
        self._store.rank(OWED, about, time.time())

    def owed(self) -> list[str]:
        """Return those that have been owed what follows for longest."""
        return self._store.lowest(OWED, MOST_OWED)

    def is_mine_to_send(self, about: str) -> bool:
        """Whether nobody else is sending it."""
        return self._store.claim(f"{OWED}:{about}", SENDING_S)

    def sent(self, about: str) -> None:
        """Record that what follows was sent."""
        self._store.unrank(OWED, about)


def _key(about: str) -> str:
    return f"sojourn:request:{about}"
