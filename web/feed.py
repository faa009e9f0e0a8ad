"""Changes, from the ledger's stream of events to every page that is open.

One thread follows the stream for all pages and hands what changed to Tornado's loop, where
everything else runs. It holds one row for each of the latest migrations, and a page asks for those
that it shows. A slow page gets the latest row of each, not every change. While Redis does not
answer, the pages show that; once it answers again, all rows are read again.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from sojourn.cluster.account import Event
from sojourn.cluster.client import Cluster
from sojourn.errors import StoreUnreachable
from sojourn.model import Json
from web.rows import Crossing, row

log = logging.getLogger("sojourn.flower")

#: The most migrations that the table has: those that were requested last. A row takes about 2 kB.
KEPT = 10_000

#: How many more may be held for a moment: to find the oldest is work for every row.
SLACK = 500

#: How many migrations are read at once: the newest are shown while older ones are read.
AT_ONCE = 500

#: How long to wait before Redis is tried again.
AGAIN_S = 1.0


class Loop(Protocol):
    """The part of Tornado's loop that other threads may use."""

    def add_callback(self, callback: Callable[..., object], *args: object) -> None:
        """Call ``callback`` in the loop's thread."""


@dataclass(frozen=True)
class Changes:
    """What a page has not been sent yet.

    If ``moved``, there are other rows, or some have other states, so that counts may have changed;
    ``rows`` are then only some of those that have changed. ``away`` is why Redis does not answer.
    """

    rows: list[Json]
    moved: bool
    away: str


class Listener:
    """One open page, with the changes it has not been sent yet. Used in the loop's thread only."""

    def __init__(self, concerns: Callable[[Json], bool] = lambda _: True) -> None:
        self.concerns = concerns
        self._rows: dict[str, Json] = {}
        self._moved, self._away = False, ""
        self._changed = asyncio.Event()

    async def changed(self, wait_s: float) -> bool:
        """Wait until there is something to send; False if there is nothing after ``wait_s``."""
        try:
            await asyncio.wait_for(self._changed.wait(), wait_s)
        except TimeoutError:
            return False
        self._changed.clear()
        return True

    def changes(self) -> Changes:
        """Return what has changed since the last call."""
        found = Changes(list(self._rows.values()), self._moved, self._away)
        self._rows, self._moved, self._away = {}, False, ""
        return found

    def take(self, rows: Iterable[Json], *, moved: bool) -> None:
        """Note rows that have changed, and whether there are new ones, or other states."""
        mine = _by_id(filter(self.concerns, rows))
        self._rows |= mine
        self._moved |= moved
        if mine:
            self._changed.set()

    def reset(self) -> None:
        """Note that all rows were read again, and that Redis answers."""
        self._rows, self._moved, self._away = {}, True, ""
        self._changed.set()

    def miss(self, why: str) -> None:
        """Note that Redis does not answer, with the sentence to show."""
        self._away = why
        self._changed.set()


class Feed:
    """All rows as they are now, and the pages that are sent their changes."""

    def __init__(self, cluster: Cluster, loop: Loop) -> None:
        self._cluster, self._loop = cluster, loop
        self._crossings: dict[str, Crossing] = {}  # used by the thread that follows only
        self.rows: dict[str, Json] = {}
        self.away = ""
        self._known = False
        self.listeners: set[Listener] = set()

    def start(self) -> None:
        """Start the thread that follows the stream; it ends with the process."""
        threading.Thread(target=self._run, name="feed", daemon=True).start()

    def join(self, listener: Listener) -> None:
        """Let a page read all rows, and note every change for it from now on."""
        self.listeners.add(listener)
        if self._known:
            listener.reset()
        if self.away:
            listener.miss(self.away)

    def all(self) -> list[Json]:
        """Return all rows as they are now. May be called from any thread."""
        # One call, which the loop's thread does not interrupt; it could change the rows during a
        # loop.
        return list(self.rows.values())

    def leave(self, listener: Listener) -> None:
        """Send a page nothing more."""
        self.listeners.discard(listener)

    def _run(self) -> None:
        while True:
            try:
                self._follow()
            except StoreUnreachable as error:
                log.warning("%s", error)
                self._loop.add_callback(self._miss, f"{error.message} What is shown may be old.")
            time.sleep(AGAIN_S)

    def _follow(self) -> None:
        """Read all migrations, then what changes. Raises StoreUnreachable."""
        # The bookmark is taken first: what changes while all are read is read again afterwards.
        place = self._cluster.ledger.bookmark()
        ids = self._cluster.ledger.ids(KEPT)
        self._loop.add_callback(self._begin, self._read(ids[:AT_ONCE]))
        for start in range(AT_ONCE, len(ids), AT_ONCE):
            self._loop.add_callback(self._take, self._read(ids[start : start + AT_ONCE]))
        while True:
            events, place = self._cluster.ledger.read(place)
            changed = self._changed(events)
            if changed:
                self._loop.add_callback(self._take, changed)

    def _changed(self, events: Iterable[Event]) -> list[Json]:
        """Return the rows that events have changed, each read once however many events it had."""
        ids: dict[str, None] = {}
        for event in events:
            ids[event.migration] = None
            if event.kind == "progress" and "bytes" in event.data:
                self._crossings[event.migration] = self._crossing(event.migration).after(
                    event, time.monotonic()
                )
        rows = self._read(list(ids))
        for changed in rows:
            if changed["percent"] in {None, 100}:
                self._crossings.pop(changed["id"], None)
        return rows

    def _read(self, ids: Sequence[str]) -> list[Json]:
        """Return the rows of those that the ledger has."""
        accounts = self._cluster.ledger.accounts(ids)
        return [row(account, self._crossing(account.id)) for account in accounts]

    def _crossing(self, migration: str) -> Crossing:
        return self._crossings.get(migration, Crossing())

    def _begin(self, rows: list[Json]) -> None:
        self.rows, self.away, self._known = _by_id(rows), "", True
        for listener in self.listeners:
            listener.reset()

    def _take(self, rows: list[Json]) -> None:
        moved = any(self._moves(changed) for changed in rows)
        self.rows |= _by_id(rows)
        if len(self.rows) > KEPT + SLACK:
            self._forget()
        for listener in self.listeners:
            listener.take(rows, moved=moved)

    def _moves(self, changed: Json) -> bool:
        before = self.rows.get(changed["id"])
        return before is None or before["state"] != changed["state"]

    def _forget(self) -> None:
        """Drop the oldest rows, as the ledger itself lists them."""
        newest = sorted(self.rows.values(), key=lambda row: -float(row["created"]))
        self.rows = _by_id(newest[:KEPT])

    def _miss(self, why: str) -> None:
        self.away = why
        for listener in self.listeners:
            listener.miss(why)


def _by_id(rows: Iterable[Json]) -> dict[str, Json]:
    return {changed["id"]: changed for changed in rows}
