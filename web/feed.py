"""What has changed, from the ledger's stream of events to every page that is open.

One thread follows the stream for all of them; what it learns is handed to Tornado's loop, where everything else runs.
A page that is slow is told the latest of each migration, not each change. When Redis does not answer, the pages are
told so, and are told everything anew when it does.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterable
from typing import Protocol

from sojourn.cluster import Cluster
from sojourn.errors import StoreUnreachable
from sojourn.ledger import Event
from sojourn.model import Json
from web.rows import Crossing, row

log = logging.getLogger("sojourn.flower")

#: The table shows so many migrations, those that were asked for last.
SHOWN = 1000

#: How long to wait before Redis is asked again.
AGAIN_S = 1.0


class Loop(Protocol):
    """The part of Tornado's loop that other threads may use."""

    def add_callback(self, callback: Callable[..., object], *args: object) -> None:
        """Call it in the loop's thread."""


class Listener:
    """One open page: what it has not been told yet. Used in the loop's thread only."""

    def __init__(self, concerns: Callable[[Json], bool] = lambda _: True) -> None:
        self.concerns = concerns
        self.rows: dict[str, Json] = {}
        self.anew = False
        self.away = ""
        self._changed = asyncio.Event()

    async def changed(self, wait_s: float) -> bool:
        """Wait until there is something to tell; False if nothing came."""
        try:
            await asyncio.wait_for(self._changed.wait(), wait_s)
        except TimeoutError:
            return False
        self._changed.clear()
        return True

    def take(self, rows: Iterable[Json]) -> None:
        """Note rows that have changed."""
        mine = {each["id"]: each for each in rows if self.concerns(each)}
        self.rows |= mine
        if mine:
            self._changed.set()

    def begin(self, rows: Iterable[Json]) -> None:
        """Note that everything is told anew."""
        self.rows, self.anew, self.away = {}, True, ""
        self.rows = {each["id"]: each for each in rows if self.concerns(each)}
        self._changed.set()

    def miss(self, why: str) -> None:
        """Note that nobody knows anything now."""
        self.away = why
        self._changed.set()


class Feed:
    """All rows as they are now, and the pages that want to hear of changes."""

    def __init__(self, cluster: Cluster, loop: Loop) -> None:
        self._cluster, self._loop = cluster, loop
        self._crossings: dict[str, Crossing] = {}  # the following thread's own
        self.rows: dict[str, Json] = {}
        self.away = ""
        self._known = False
        self.listeners: set[Listener] = set()

    def start(self) -> None:
        """Begin to follow; ends with the process."""
        threading.Thread(target=self._run, name="feed", daemon=True).start()

    def join(self, listener: Listener) -> None:
        """Tell a page everything, and then every change."""
        self.listeners.add(listener)
        if self._known:
            listener.begin(self.rows.values())
        if self.away:
            listener.miss(self.away)

    def all(self) -> list[Json]:
        """Return all rows as they are now; from any thread."""
        return list(self.rows.values())

    def leave(self, listener: Listener) -> None:
        """Tell a page nothing more."""
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
        """Read everything, then what changes. Raises StoreUnreachable."""
        place = self._cluster.ledger.bookmark()
        accounts = self._cluster.ledger.latest(SHOWN)
        self._loop.add_callback(self._begin, [row(account, self._crossing(account.id)) for account in accounts])
        while True:
            events, place = self._cluster.ledger.read(place)
            changed = self._changed(events)
            if changed:
                self._loop.add_callback(self._take, changed)

    def _changed(self, events: Iterable[Event]) -> list[Json]:
        """Return the rows that events have changed; each is read once, however much happened to it."""
        ids: dict[str, None] = {}
        for event in events:
            ids[event.migration] = None
            if event.kind == "progress" and "bytes" in event.data:
                self._crossings[event.migration] = self._crossing(event.migration).after(event, time.monotonic())
        rows = [row(account, self._crossing(account.id)) for account in self._cluster.ledger.accounts(list(ids))]
        for each in rows:
            if each["percent"] in {None, 100}:
                self._crossings.pop(each["id"], None)
        return rows

    def _crossing(self, migration: str) -> Crossing:
        return self._crossings.get(migration, Crossing())

    def _begin(self, rows: list[Json]) -> None:
        self.rows, self.away, self._known = {each["id"]: each for each in rows}, "", True
        for listener in self.listeners:
            listener.begin(rows)

    def _take(self, rows: list[Json]) -> None:
        self.rows |= {each["id"]: each for each in rows}
        while len(self.rows) > SHOWN:
            del self.rows[min(self.rows, key=lambda each: self.rows[each]["created"])]
        for listener in self.listeners:
            listener.take(rows)

    def _miss(self, why: str) -> None:
        self.away = why
        for listener in self.listeners:
            listener.miss(why)
