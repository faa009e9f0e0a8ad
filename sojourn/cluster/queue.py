"""The queue of migrations in Redis: fair between batches, within limits that are held as leases.

A **batch** is what was requested in one go. Batches take turns: each hands out one migration before
any hands out a second one. Within a batch a higher priority goes first, then the earlier arrival. A
**route** is a pair of source and destination: everything that waits for one route waits for the
same two hosts, so only the first of each route is ever examined, and a call costs as much with ten
thousand queued as with ten.

Whoever takes a migration holds a **lease** on three places: one among those that leave the source,
one among those that come to the destination, one in the cluster. From then on the hosts whose
journals have the migration renew it; if nobody does, all three expire together. Then the migration
is handed out again, so a migration is handed out *at least* once, perhaps while it is still under
way: the hosts' journals recognise its id, and it remains one migration. Whoever learns that it has
ended reports that by its id. A ``take`` whose answer is lost is sent again, and its **ticket**
brings the same answer.

Handing out counts as an attempt. A migration whose lease has expired MAX_TRIES times is given up
and kept until that was reported; nothing is handed out endlessly.

Keys, all beginning with ``sojourn:queue:``; none expires unless its description says so:

``ids``                   set: every migration in the queue
``entry:<id>``            hash: ``batch``, ``priority``, ``source``, ``destination``, ``plan``
                          (sealed JSON), ``number`` (order of arrival), ``queued`` (ms), ``tries``,
                          ``state`` (waiting, later, taken, given-up), ``holder``, ``ticket``;
                          ``why`` it was given up
``turns``                 sorted set: batches with something waiting, by the turn they took last or
                          came in; lowest next
``routes:<batch>``        sorted set: the batch's routes with something waiting, by the score of the
                          first that waits
``line:<batch>:<route>``  sorted set: the ids that wait, by priority and arrival
``later``                 sorted set: ids that wait for a time, by that time (ms)
``taken``                 sorted set: ids that were handed out, by the end of their lease (ms): the
                          cluster's places
``out:<host>``            sorted set: the same for those that leave a host; expires with its last
                          lease
``in:<host>``             sorted set: the same for those that come to a host; expires with its last
                          lease
``asked:<ticket>``        text: the id that a call was given, in case its answer is lost and it is
                          sent again; expires like a lease
``given-up``              sorted set: ids that were given up, by when (ms)
``paused``                set: batches of which nothing is handed out until they are resumed
``shut:out:<host>``       text: since when (ms) a host is known to be silent; expires where nobody
                          finds it silent again
``shut:in:<host>``        text: the same for a host that is silent or cordoned
``looked``                text: present while a host has looked after the queue just now
``number``, ``turn``      counters

Each operation is one script of ``lua/queue``, so each is atomic. Time is Redis's own: no client's
clock counts. The scripts also read what hosts have announced and which are cordoned, as
``sojourn/cluster/registry.py`` keeps it. All of it can be lost without endangering a process: what
waited is then not begun. Only what was queued with the cluster's key is handed out: an entry
without its seal is dropped.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sojourn.cluster import records
from sojourn.cluster.registry import CORDONED, ROOM, HostInfo
from sojourn.cluster.scripts import scripts_of
from sojourn.cluster.sealed import Sealed
from sojourn.cluster.store import Store
from sojourn.errors import UsageError
from sojourn.model import MIGRATION_ID, Json, Plan, Untyped
from sojourn.text import quoted

#: The maximum number of attempts: how often a migration is handed out before it is given up.
MAX_TRIES = 3

#: How long a part of a batch waits after its first failure; twice as long after each further one.
BACK_OFF_S = 5.0

#: How many routes one ``take`` examines. If the hosts of all of them are full, the batches that it
#: examined go behind the others, and the next ``take`` examines those.
LOOK = 500

#: How long a host may be silent or cordoned before what waits for it is handed out all the same:
#: whoever takes it finds that it cannot begin, and reports that. A restart takes less time.
SHUT_S = 10.0

#: How long it is remembered since when a host is silent or cordoned, but at least for two leases.
#: If nobody finds it so for that long it may have been back meanwhile, and its time starts over.
SHUT_KEPT_S = 60.0

#: How many entries that are due, and how many whose lease has expired, one ``take`` requeues.
SWEEP = 100

#: How many entries one script queues: a few milliseconds in which Redis answers nobody else.
CHUNK = 100

#: Priorities go from minus to plus this. A score is a double with 53 bits: 11 hold the
#: priority, 40 the order of arrival.
PRIORITIES = 1000

#: What seals name an entry.
ENTRY = "queue entry"

BATCH_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")

SCRIPTS = scripts_of(
    "queue",
    MAX_TRIES=MAX_TRIES,
    SWEEP=SWEEP,
    ROOM=ROOM,
    CORDONED=CORDONED,
    SHUT_MS=int(SHUT_S * 1000),
    SHUT_KEPT_MS=int(SHUT_KEPT_S * 1000),
)


class Standing(StrEnum):
    """The state of a migration in the queue."""

    WAITING = "waiting"
    LATER = "later"
    TAKEN = "taken"
    GIVEN_UP = "given-up"


@dataclass(frozen=True)
class Limits:
    """How many queued migrations may be under way: in the cluster, out of and into each host.

    They explain to people why something waits. ``take`` itself reads what the hosts of each route
    announce at that instant; what waits for one that is silent or cordoned longer than SHUT_S is
    handed out so that its failure is reported.
    """

    cluster: int
    outgoing: Mapping[str, int]
    incoming: Mapping[str, int]

    @classmethod
    def of(cls, hosts: Mapping[str, HostInfo | None], cluster: int) -> Limits:
        """Return the limits that hosts announce; silent ones have none, cordoned ones take none."""
        alive = [info for info in hosts.values() if info]
        return cls(
            cluster,
            {info.name: info.max_outgoing for info in alive},
            {info.name: info.max_incoming for info in alive if not info.cordoned},
        )


@dataclass(frozen=True)
class Entry:
    """A migration to queue: its id, the batch it belongs to, and what was requested.

    ``plan`` holds the options of a Plan, source and destination among them. A higher ``priority``
    goes first in its batch. It is not handed out before ``delay_s`` have passed.
    """

    id: str
    batch: str
    plan: Json
    priority: int = 0
    delay_s: float = 0

    def check(self) -> None:
        """Raise UsageError for anything that cannot be queued.

        Only what is queued is checked, not what is handed out: another version may have queued it.
        """
        check_migration_id(self.id)
        check_batch_id(self.batch)
        check_priority(self.priority)
        Plan.from_json(self.plan)

    def packed(self, sealed: Sealed) -> Json:
        """Return the entry as ``put.lua`` reads it. Raises UsageError."""
        self.check()
        return {
            "id": self.id,
            "batch": self.batch,
            "priority": self.priority,
            "delay": _ms(self.delay_s),
            "source": self.plan["source"],
            "destination": self.plan["destination"],
            "plan": sealed.text(ENTRY, self.id, self.plan),
        }


@dataclass(frozen=True)
class _Attempt:
    """Which attempt an entry is at, and how the last one ended if it was given up."""

    tries: int
    why: str = ""


@dataclass(frozen=True)
class Taken:
    """A migration that was handed out, and which attempt this is."""

    entry: Entry
    tries: int


@dataclass(frozen=True)
class GivenUp:
    """A migration that was handed out too often, and how the last attempt ended."""

    entry: Entry
    tries: int
    why: str


@dataclass(frozen=True)
class Waiting:
    """A waiting migration, for people: its position in the whole queue, and why it waits."""

    position: int
    id: str
    batch: str
    priority: int
    source: str
    destination: str
    tries: int
    why: str


@dataclass(frozen=True)
class Counts:
    """How many migrations wait, wait for a time, are under way, and were given up."""

    waiting: int
    later: int
    taken: int
    given_up: int


class Queue:
    """Reads and writes the queue. Every method raises StoreUnreachable if Redis does not answer.

    Nothing is handed out that was queued longer than ``keep_s`` seconds ago.
    """

    def __init__(self, store: Store, lease_s: float, keep_s: float | None = None) -> None:
        self._store, self._sealed = store, Sealed(store)
        # What is older might have ended so long ago that no journal remembers it.
        self._lease_s, self._keep_s = lease_s, keep_s

    def put(self, entries: Iterable[Entry]) -> int:
        """Queue migrations and return how many are new; an id that is queued stays as it is.

        Raises UsageError before any is queued. CHUNK of them at a time are queued at one instant;
        if Redis goes away in between, put all of them again.
        """
        packed = [entry.packed(self._sealed) for entry in entries]
        chunks = [packed[start : start + CHUNK] for start in range(0, len(packed), CHUNK)]
        return sum(int(self._run("put", json.dumps(chunk))) for chunk in chunks)

    def take(self, holder: str, cluster: int, look: int = LOOK) -> Taken | None:
        """Return the migration whose turn it is among those that have room, or None.

        Its places are held for one lease. At most ``cluster`` migrations are under way at once, and
        on each host as many as it announces. ``look`` bounds how many routes are examined.
        """
        while True:
            # One per call: if the connection breaks, the same call is sent again with its ticket.
            ticket = uuid.uuid4().hex
            answer = self._run("take", ticket, holder, _ms(self._lease_s), look, cluster)
            if answer is None:
                return None
            if found := self._opened(answer):
                entry, attempt = found
                return Taken(entry, attempt.tries)

    def hold(self, migrations: Sequence[str], holder: str) -> int:
        """Renew the leases of what a host's journal has under way; return how many those are.

        It does not matter who took a migration. One whose lease had expired has its places again at
        once, since it never stopped using them. What is not in the queue is skipped.
        """
        return int(self._run("hold", holder, _ms(self._lease_s), *migrations)) if migrations else 0

    def end(self, migration: str) -> bool:
        """Forget a migration that has ended, whatever its state; False if it is not queued."""
        return bool(self._run("end", migration))

    def is_my_turn_to_look(self, every_s: float) -> bool:
        """Whether nobody has looked after the queue for ``every_s``; if so, the caller should."""
        return self._store.claim("sojourn:queue:looked", every_s)

    def standing(self, migration: str) -> Standing | None:
        """Return the state of a migration in the queue, None if it is not there."""
        state = self._store.field(f"sojourn:queue:entry:{migration}", "state")
        return Standing(state) if state else None

    def remove(self, migration: str) -> bool:
        """Forget a migration that waits or was given up; False if it is under way or not queued."""
        return bool(self._run("remove", migration))

    def pause(self, batch: str) -> None:
        """Hand out nothing more of a batch; what is under way goes on."""
        self._run("pause", batch)

    def resume(self, batch: str) -> None:
        """Let what waits of a paused batch have its turns again."""
        self._run("resume", batch)

    def has_waiting(self, batch: str) -> bool:
        """Whether anything of a batch waits for its turn."""
        return bool(self._store.highest(f"sojourn:queue:routes:{batch}", 1))

    def reprioritise(self, migration: str, priority: int) -> bool:
        """Change a waiting migration's priority; False if it does not wait. Raises UsageError."""
        check_priority(priority)
        return bool(self._run("reprioritise", migration, priority))

    def waiting(self, limits: Limits, count: int = 100) -> list[Waiting]:
        """Return the first that wait, and why, in the order they would go if all hosts had room."""
        taken, rows = self._run("waiting", count)
        return [_waiting(place, row, int(taken), limits) for place, row in enumerate(rows, 1)]

    def given_up(self, count: int = 100) -> list[GivenUp]:
        """Return migrations that were given up, oldest first; ``end`` each when it is reported."""
        found = [self._opened(row) for row in self._run("given_up", count)]
        return [
            GivenUp(entry, attempt.tries, attempt.why) for entry, attempt in filter(None, found)
        ]

    def counts(self) -> Counts:
        """Return how many migrations are in each state."""
        return Counts(*(int(number) for number in self._run("counts")))

    def _opened(self, answer: Sequence[Any]) -> tuple[Entry, _Attempt] | None:
        """Return an entry, and which attempt at it this is, from the answer of a script.

        None for one that nobody with the cluster's key has queued so, or that cannot be read; it is
        dropped.
        """
        name, flat = answer
        fields = dict(zip(flat[::2], flat[1::2], strict=True))
        plan = self._sealed.content(ENTRY, name, fields.get("plan", ""), within_s=self._keep_s)
        entry = records.of(Entry, fields | {"id": name, "plan": plan})
        attempt = records.of(_Attempt, fields)
        if entry is None or attempt is None:
            self.end(name)
            return None
        return entry, attempt

    def _run(self, script: str, *arguments: str | int) -> Untyped:
        return self._store.script(SCRIPTS[script], arguments)


def check_migration_id(migration: str) -> None:
    """Raise UsageError for what is not the id of a migration."""
    if not MIGRATION_ID.fullmatch(migration):
        raise UsageError(
            f"{quoted(migration)} is not the id of a migration.",
            "It has 8 to 40 characters out of 0-9, a-f and the hyphen, as a UUID has.",
        )


def check_batch_id(batch: str) -> None:
    """Raise UsageError for what is not the id of a batch."""
    if not BATCH_ID.fullmatch(batch):
        raise UsageError(f"{quoted(batch)} is not the id of a batch.")


def back_off_s(tries: int) -> float:
    """Return how long a part of a batch waits before its next attempt, after ``tries`` failures."""
    return float(BACK_OFF_S * 2 ** (tries - 1))


def check_priority(priority: object) -> None:
    """Raise UsageError unless this is a priority."""
    if not isinstance(priority, int) or isinstance(priority, bool) or abs(priority) > PRIORITIES:
        raise UsageError(
            f"A priority is a whole number from -{PRIORITIES} to {PRIORITIES}, not {priority!r}."
        )


def _ms(seconds: float) -> int:
    return max(0, int(seconds * 1000))


def _waiting(position: int, row: Sequence[Any], taken: int, limits: Limits) -> Waiting:
    name, batch, priority, source, destination, tries, due, out, into = row
    if int(due) < 0:
        why = "its batch is paused"
    elif int(due):
        why = f"not before {int(due) / 1000:.0f} s from now"
    else:
        why = _why_it_waits(source, destination, (int(out), int(into), taken), limits)
    return Waiting(position, name, batch, int(priority), source, destination, int(tries), why)


def _why_it_waits(
    source: str, destination: str, counts: tuple[int, int, int], limits: Limits
) -> str:
    out, into, taken = counts
    if source not in limits.outgoing:
        return f"{source} does not answer"
    if destination not in limits.incoming:
        return f"{destination} does not answer or is cordoned"
    if out >= limits.outgoing[source]:
        return f"{out} of {limits.outgoing[source]} leave {source} already"
    if into >= limits.incoming[destination]:
        return f"{into} of {limits.incoming[destination]} come to {destination} already"
    if taken >= limits.cluster:
        return f"{taken} of {limits.cluster} are under way in the cluster already"
    return "its turn comes"
