"""Records in Redis that are acted upon: sealed when they are written, opened when they are read.

A record without a good seal is not there for whoever reads it: it is logged, counted for the
metrics, and nothing is done by it; others are read as usual. Redis is not trusted, so whoever can
write to it without the cluster's key can at most hide a record.

Keys: none of its own; refusals are counted in ``sojourn:tally`` (``sojourn.cluster.counters``).
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Collection

from sojourn.cluster import counters, records
from sojourn.cluster.store import Store
from sojourn.errors import StoreUnreachable
from sojourn.model import Json
from sojourn.security.seal import NotSealed, Opened, Seal

log = logging.getLogger("sojourn.seal")

#: How many refused records a process remembers, so as to report each of them once.
REMEMBERED = 1000

ADVICE = (
    "Nothing was done by it. Either an older version wrote it, or somebody who does not have the "
    "cluster's key writes to Redis."
)


def unchecked(kind: str, about: str, text: str) -> Opened:
    """Return what a record says, whoever wrote it. Raises NotSealed if it says nothing."""
    content = records.mapping(text)
    if content is None:
        raise NotSealed(f"The {kind} of {about} is malformed.")
    content.pop("seal", None)
    return Opened(content, "", 0.0)


class Sealed:
    """Seals and opens the records of one store, in the name of the host that the store is of.

    ``for_people``: the kinds that people are shown, and by which no process is touched.
    """

    def __init__(self, store: Store, for_people: Collection[str] = ()) -> None:
        self._store, self._for_people = store, for_people
        self._reported: dict[tuple[str, str, str], None] = {}

    def __repr__(self) -> str:
        # Flower and `celery inspect conf` show it to whoever asks.
        return f"seals of {self._store.seal.host}"

    def text(self, kind: str, about: str, content: Json) -> str:
        """Return a record as it is written to Redis."""
        return self._store.seal.close(kind, about, content)

    @property
    def seal(self) -> Seal:
        """The seal of this store's host, for texts that are sealed as they are."""
        return self._store.seal

    def opened(
        self, kind: str, about: str, text: str, *, by: str = "", within_s: float | None = None
    ) -> Opened | None:
        """Return what a record says, None for one without a good seal, which is reported.

        Whoever has no key at all can do nothing, and is shown what is there, unchecked.
        """
        try:
            if not self._store.seal.key:
                return unchecked(kind, about, text)
            return self._store.seal.open(kind, about, text, by=by, within_s=within_s)
        except NotSealed as error:
            self.refuse(kind, about, text, f"{error.message} {ADVICE}")
            return None

    def content(
        self, kind: str, about: str, text: str, *, by: str = "", within_s: float | None = None
    ) -> Json | None:
        """Return the content of a record, None for one without a good seal."""
        found = self.opened(kind, about, text, by=by, within_s=within_s)
        return found.content if found else None

    def refuse(self, kind: str, about: str, text: str, why: str) -> None:
        """Log and count a record that is not acted upon, once in each process."""
        which = (kind, about, text)
        if which in self._reported:
            return
        while len(self._reported) >= REMEMBERED:
            del self._reported[next(iter(self._reported))]
        self._reported[which] = None
        # After a change of the key all old ends are unreadable, and each command would say so.
        log.log(logging.INFO if kind in self._for_people else logging.WARNING, "%s", why)
        with contextlib.suppress(StoreUnreachable):
            self._store.write(counters.refusal(kind))
