"""Batches: what was requested in one go, in Redis, and what has become of it so far.

Each line of a batch is a **part**: one process that is to move. A part is attempted up to three
times, each time by a migration with an id of its own, which the ledger has. A part has one end, and
the batch ends with its last part. A script counts the ends in Redis, so of all who record ends
exactly one learns that theirs was the last.

Keys:

``sojourn:batches``             sorted set: ids by the time of the request
``sojourn:batch:<id>``          hash, each field as JSON: ``request`` (sealed: ``kind``, which is
                                plan or drain, ``asked``, ``by``, ``created``), ``state``, ``total``
                                (parts), ``stays`` (what was never begun, and why), ``times``
                                (sealed: ``until``, when nothing more of it begins, and ``waits``,
                                until when parts wait for a place), ``aborted`` (sealed: whether
                                parts under way are rolled back, and whether that was for its time)
``sojourn:batch:<id>:parts``    hash: number of the line to sealed JSON of Part
``sojourn:batch:<id>:ends``     hash: number of the line to sealed JSON of how it ended
``sojourn:batch:<id>:looked``   text: present while a host has looked after the batch just now

All but the last expire some days after they were touched last. All of it can be lost without
endangering a process. A batch, a part or an end without its seal is not there.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from itertools import chain
from uuid import NAMESPACE_OID, uuid5

from sojourn.cluster import records
from sojourn.cluster.ledger import EVENTS, EVENTS_KEPT
from sojourn.cluster.placement import Planned
from sojourn.cluster.queue import MAX_TRIES
from sojourn.cluster.scripts import scripts_of
from sojourn.cluster.sealed import Sealed
from sojourn.cluster.store import Store
from sojourn.errors import UsageError
from sojourn.model import Json, State

INDEX = "sojourn:batches"
LOOKED = "looked"

#: What seals name a batch, its abort, and a part of it and its end.
BATCH, ABORT, PART, END = "batch", "abort of batch", "part of batch", "end of part"
TIMES = "times of batch"

#: How many batches are searched for open ones: one that is older than so many others has ended.
LATEST = 100

#: How many parts are read at most, and what the number of one looks like.
MOST_PARTS, LINE = 100_000, re.compile(r"[0-9]{1,9}", re.ASCII)

#: How many parts are written in one block: a few milliseconds in which Redis answers nobody else.
CHUNK = 200

#: How many characters of a command line a line for people has.
COMMAND = 40

#: Ends of a part that stand only until more is known: a later end replaces them.
PROVISIONAL = (State.IN_DOUBT, State.CLEANUP_PENDING)

#: The fields of a batch that are for people, and decide nothing.
SHOWN = ("total", "stays", "failure")

SCRIPTS = scripts_of("batches", EVENTS=EVENTS, EVENTS_KEPT=EVENTS_KEPT)


class BatchState(StrEnum):
    """The state of a batch."""

    PLANNING = "planning"
    RUNNING = "running"
    PAUSED = "paused"
    ABORTING = "aborting"
    FINISHED = "finished"
    ABORTED = "aborted"
    REFUSED = "refused"

    @property
    def final(self) -> bool:
        """Whether nothing more of it will move unless that is requested again."""
        return self in {BatchState.FINISHED, BatchState.ABORTED, BatchState.REFUSED}


#: The states of a batch of which nothing more begins.
ABORTS = (BatchState.ABORTING, BatchState.ABORTED)


@dataclass(frozen=True)
class Part:
    """One line of a batch: what is to be moved, and which migration attempts that now.

    With ``auto``, placement chose the destination and may choose another one for the next attempt;
    ``avoid`` are those that failed. ``bytes`` is the memory the tree takes at its destination.
    ``command`` is the command line of its root, empty where that was not found. One that is not
    ``placed`` waits for a host that can take it, and its destination is none yet.
    """

    number: int
    plan: Json
    migration: str
    priority: int = 0
    auto: bool = False
    bytes: int = 0
    tries: int = 1
    avoid: tuple[str, ...] = ()
    command: str = ""
    placed: bool = True

    def again(self, destination: str | None = None) -> Part:
        """Return the part for its next attempt, perhaps to another destination.

        The id of that migration follows from this one's, so whoever computes it twice begins one
        migration, not two.
        """
        following = str(uuid5(NAMESPACE_OID, self.migration))
        plan = self.plan | ({"destination": destination} if destination else {})
        return replace(self, plan=plan, migration=following, tries=self.tries + 1)

    def at(self, destination: str) -> Part:
        """Return the part with its place, which it has waited for."""
        return replace(self, plan=self.plan | {"destination": destination}, placed=True)

    @property
    def may_be_tried_again(self) -> bool:
        """Whether there are attempts left."""
        return self.tries < MAX_TRIES


@dataclass(frozen=True)
class Record:
    """A batch as it is now: ``ended`` of its ``total`` parts have ended.

    After ``until``, in seconds since the epoch, nothing more of it begins; until ``waits``, parts
    wait that no host can take. When it is aborted,
    ``roll_back`` says whether the parts under way are rolled back, and ``timed_out`` whether it was
    since its time was over.
    """

    id: str
    kind: str
    asked: Json
    by: str
    created: float
    state: BatchState
    total: int = 0
    ended: int = 0
    stays: Sequence[Json] = ()
    failure: Json | None = None
    until: float | None = None
    waits: float | None = None
    roll_back: bool = False
    timed_out: bool = False

    def to_json(self, ends: Mapping[int, Json]) -> Json:
        """Return the batch with the ends of its parts, as ``.get()`` and ``--json`` give it.

        ``docs/reference`` documents the fields.
        """
        record = {
            name: value
            for name, value in asdict(self).items()
            if name not in {"ended", "roll_back"}
        }
        migrations = [{"line": number, **ends[number]} for number in sorted(ends)]
        counts = states_of(ends, self.total)
        return {**record, "stays": list(self.stays), "counts": counts, "migrations": migrations}


class Batches:
    """Reads and writes batches. Every method raises StoreUnreachable if Redis does not answer."""

    def __init__(self, store: Store, keep_s: int) -> None:
        self._store, self._sealed = store, Sealed(store)
        self._keep_s = keep_s

    def plan(self, batch: str, kind: str, asked: Json, by: str, times: Json | None = None) -> None:
        """Record a batch that was requested and is being planned.

        ``times`` may have ``until`` and ``waits``, as a Record has them.
        """
        now = time.time()
        request = {"kind": kind, "asked": asked, "by": by, "created": now}
        # A sorted set's members do not expire one by one, so each request removes those that are
        # too old.
        self._store.write(
            [
                ["ZREMRANGEBYSCORE", INDEX, "-inf", f"({now - self._keep_s}"],
                ["ZADD", INDEX, now, batch],
            ]
        )
        fields = {"request": self._sealed.text(BATCH, batch, request)}
        if times:
            fields["times"] = self._sealed.text(TIMES, batch, times)
        self._put(batch, fields, BatchState.PLANNING)

    def open(self, batch: str, parts: Iterable[Part], stays: Sequence[Json]) -> None:
        """Record the parts of a batch and set it running; nothing of it is queued yet."""
        found = list(parts)
        for start in range(0, len(found), CHUNK):
            self.keep(batch, *found[start : start + CHUNK])
        fields = {"total": str(len(found)), "stays": json.dumps(list(stays))}
        self._put(batch, fields, BatchState.RUNNING)

    def refuse(self, batch: str, failure: Json) -> None:
        """Record that nothing of a batch will be begun, and why."""
        self._put(batch, {"failure": json.dumps(failure)}, BatchState.REFUSED)

    def keep(self, batch: str, *parts: Part) -> None:
        """Record parts as they are now."""
        key = f"{_key(batch)}:parts"
        pairs = [
            (
                str(part.number),
                self._sealed.text(PART, _about(batch, part.number), asdict(part)),
            )
            for part in parts
        ]
        self._store.write([["HSET", key, *chain(*pairs)], ["EXPIRE", key, self._keep_s]])

    def record(self, batch: str) -> Record | None:
        """Return a batch, None if it is not known, or what is recorded is no batch."""
        encoded = self._store.fields(_key(batch))
        # To abort a batch that has expired leaves a hash with nothing but that.
        if "state" not in encoded:
            return None
        request = self._open(BATCH, batch, encoded.get("request", ""))
        if request is None:
            return None
        times = self._open(TIMES, batch, encoded["times"]) if "times" in encoded else None
        # What was aborted and resumed is aborted no more.
        is_aborted = encoded["state"] in ABORTS and "aborted" in encoded
        how = self._open(ABORT, batch, encoded["aborted"]) if is_aborted else None
        shown = records.values({name: encoded[name] for name in SHOWN if name in encoded})
        ended = self._store.size(f"{_key(batch)}:ends")
        about = {"id": batch, "state": encoded["state"], "ended": ended}
        return records.of(Record, request | shown | (times or {}) | (how or {}) | about)

    def parts(self, batch: str) -> list[Part]:
        """Return the parts of a batch in the order of its lines."""
        found = self._store.some_fields(f"{_key(batch)}:parts", MOST_PARTS)
        parts = (self._part(batch, number, text) for number, text in found.items())
        return sorted((part for part in parts if part), key=lambda part: part.number)

    def part(self, batch: str, number: int) -> Part | None:
        """Return one part, None if there is none."""
        value = self._store.field(f"{_key(batch)}:parts", str(number))
        return self._part(batch, str(number), value) if value else None

    def end(self, batch: str, number: int, end: Json) -> int | None:
        """Record the end of a part; return how many have none yet, None if this one had one before.

        An end replaces an earlier one only where that was provisional: a doubt, or a clean-up that
        was pending.
        """
        sealed = self._sealed.text(END, _about(batch, number), end)
        arguments = (_key(batch), number, sealed, batch, *PROVISIONAL)
        new, left = self._store.script(SCRIPTS["end"], arguments)
        self._store.write([["EXPIRE", f"{_key(batch)}:ends", self._keep_s]])
        return int(left) if int(new) else None

    def ends(self, batch: str) -> dict[int, Json]:
        """Return the ends of the parts that have one, by their numbers."""
        found = self._store.some_fields(f"{_key(batch)}:ends", MOST_PARTS)
        ends = (
            (name, records.result(self._open(END, _about(batch, name), text)))
            for name, text in found.items()
        )
        return {int(name): end for name, end in ends if end and LINE.fullmatch(name)}

    def has_ended(self, batch: str, number: int) -> bool:
        """Whether a part has an end, be it a doubt."""
        return self._store.field(f"{_key(batch)}:ends", str(number)) is not None

    def reopen(self, batch: str, parts: Sequence[Part]) -> None:
        """Let parts that have ended be attempted again."""
        # Parts first: one without an end is queued as it is recorded then.
        self.keep(batch, *parts)
        self._store.write([["HDEL", f"{_key(batch)}:ends", *(str(part.number) for part in parts)]])

    def turn(self, batch: str, to: BatchState, *states: BatchState) -> bool:
        """Change the state of a batch if it is one of ``states``; False if it is another one."""
        return bool(self._store.script(SCRIPTS["turn"], [_key(batch), to, batch, *states]))

    def rest(self, batch: str) -> None:
        """Close a batch, as finished or aborted, if each of its parts has ended; safe to repeat."""
        self._store.script(SCRIPTS["rest"], [_key(batch), batch])

    def let_take_its_time(self, batch: str) -> None:
        """Forget when the time of a batch is over."""
        self._store.write([["HDEL", _key(batch), "times"]])

    def abort(self, batch: str, *, roll_back: bool, timed_out: bool = False) -> None:
        """Begin nothing more of a batch, and record whether parts under way are rolled back."""
        # Before the state: whoever sees that the batch is aborting must find how.
        asked = {"roll_back": roll_back, "timed_out": timed_out}
        how = self._sealed.text(ABORT, batch, asked)
        self._store.put_fields(_key(batch), {"aborted": how}, expire_s=self._keep_s)
        self.turn(batch, BatchState.ABORTING, BatchState.RUNNING, BatchState.PAUSED)

    def latest(self, count: int) -> list[Record]:
        """Return the batches that were requested last, newest first."""
        found = (self.record(batch) for batch in self._store.highest(INDEX, count))
        return [record for record in found if record]

    def newest(self, since: float = 0) -> Iterator[Record]:
        """Yield the batches that were requested since then, newest first."""
        start = 0
        while ids := self._store.highest(INDEX, LATEST, start):
            for record in filter(None, map(self.record, ids)):
                if record.created < since:
                    return
                yield record
            start += LATEST

    def hosts(self, record: Record) -> set[str]:
        """Return the hosts that a batch's processes are on, were on, or go to."""
        plans = [part.plan for part in self.parts(record.id)]
        ends = (plan.get(side) for plan in plans for side in ("source", "destination"))
        return {str(host) for host in (*ends, *(stay.get("source") for stay in record.stays))}

    def promised(self) -> list[Planned]:
        """Return the memory that open batches will take, and that placement must leave to them."""
        found = []
        for record in self.latest(LATEST):
            if not record.state.final:
                ended = self.ends(record.id).keys()
                parts = (part for part in self.parts(record.id) if part.placed)
                open_ones = (part for part in parts if part.number not in ended)
                found += [Planned(part.plan["destination"], part.bytes) for part in open_ones]
        return found

    def find(self, prefix: str) -> Record:
        """Return the one batch whose id begins with ``prefix``. Raises UsageError otherwise."""
        ids = [batch for batch in self._store.highest(INDEX, 10_000) if batch.startswith(prefix)]
        record = self.record(ids[0]) if len(ids) == 1 else None
        if record is None:
            have = f"{len(ids)} batches have" if ids else "No batch has"
            raise UsageError(
                f"{have} an id that begins with {prefix!r}.", "`sojourn batches` shows them."
            )
        return record

    def is_my_turn_to_look(self, batch: str, every_s: float) -> bool:
        """Whether nobody has looked after a batch for ``every_s``; if so, the caller should."""
        return self._store.claim(f"{_key(batch)}:{LOOKED}", every_s)

    def _open(self, kind: str, about: str, text: str) -> Json | None:
        """Return a record, None for one without a good seal, or older than hosts' journals."""
        return self._sealed.content(kind, about, text, within_s=self._keep_s)

    def _part(self, batch: str, number: str, text: str) -> Part | None:
        return records.of(Part, self._open(PART, _about(batch, number), text))

    def _put(self, batch: str, fields: Mapping[str, str], state: BatchState) -> None:
        # The state is no JSON: scripts compare it.
        pairs = [*fields.items(), ("state", str(state))]
        event = ("migration", batch, "kind", "batch", "data", "{}")
        self._store.write(
            [
                ["HSET", _key(batch), *chain(*pairs)],
                ["EXPIRE", _key(batch), self._keep_s],
                ["XADD", EVENTS, "MAXLEN", "~", EVENTS_KEPT, "*", *event],
            ]
        )


def who(pid: int | None, command: str) -> str:
    """Return a process as people know it: its command, cut if that is long, and its PID."""
    short = command if len(command) <= COMMAND else f"{command[: COMMAND - 1]}…"
    return f"{short} (pid {pid})" if short else f"pid {pid}"


def states_of(ends: Mapping[int, Json], total: int) -> dict[str, int]:
    """Return how many parts ended in which state; those without an end are ``open``."""
    counts: dict[str, int] = {}
    for end in ends.values():
        counts[end["state"]] = counts.get(end["state"], 0) + 1
    open_ones = total - len(ends)
    return counts | ({"open": open_ones} if open_ones else {})


def _about(batch: str, number: int | str) -> str:
    """Return what a part's seal is about."""
    return f"{batch}, line {number}"


def _key(batch: str) -> str:
    return f"sojourn:batch:{batch}"
