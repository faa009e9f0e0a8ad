"""Batches: what was asked for at one go, in Redis, and what has become of it so far.

Each line of a batch is a **part**: one process that shall move. A part is tried up to three times, each time by a
migration with an id of its own; the ledger knows those. A part has one end, and the batch ends with its last part:
the ends are counted in Redis, by a script, so that exactly one of those who tell them is told that theirs is the last.

Keys:

``sojourn:batches``           sorted set: ids by the time they were asked for
``sojourn:batch:<id>``        hash, each field as JSON: ``kind`` (plan or drain), ``asked``, ``by``, ``created``,
                              ``state``, ``total`` (parts), ``stays`` (what was never begun, and why), ``roll_back``
                              (how it was aborted)
``sojourn:batch:<id>:parts``  hash: number of the line to JSON of Part
``sojourn:batch:<id>:ends``   hash: number of the line to JSON of what it came to

All of them expire some days after they were touched last. All of it can be lost without endangering a process.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from enum import StrEnum
from uuid import NAMESPACE_OID, uuid5

from sojourn.errors import UsageError
from sojourn.ledger import EVENTS, EVENTS_KEPT
from sojourn.model import Json, State
from sojourn.placement import Planned
from sojourn.queue import MAX_TRIES
from sojourn.store import Store

INDEX = "sojourn:batches"
LOOKED = "looked"

#: Batches that are older than so many others are at rest.
LATEST = 100

#: So many parts are written in one block: few milliseconds in which Redis answers nobody else.
CHUNK = 200

#: What is told of a part only until more is known.
PROVISIONAL = (State.IN_DOUBT, State.CLEANUP_PENDING)

#: Tell those who follow the stream of events that something of a batch has changed, and which state it has now if that
#: has; what else it was is read in the batch.
CHANGED = """
local function changed(batch, state)
  local data = state and cjson.encode({state = state}) or '{}'
  redis.call('XADD', '%s', 'MAXLEN', '~', %d, '*', 'migration', batch, 'kind', 'batch', 'data', data)
end
""" % (EVENTS, EVENTS_KEPT)  # noqa: UP031  (Lua has braces)

#: Enter an end unless there is a final one; return whether the part had none, and how many have none yet.
END = """
local ends = ARGV[1] .. ':ends'
local before = redis.call('HGET', ends, ARGV[2])
local state = before and cjson.decode(before).state
if not before or state == ARGV[5] or state == ARGV[6] then
  redis.call('HSET', ends, ARGV[2], ARGV[3])
  changed(ARGV[4])
end
return {before and 0 or 1, tonumber(redis.call('HGET', ARGV[1], 'total') or '0') - redis.call('HLEN', ends)}
"""

#: Change the state if it is one of those that are named; return whether it was.
TURN = """
local state = redis.call('HGET', ARGV[1], 'state')
for i = 4, #ARGV do
  if state == ARGV[i] then
    redis.call('HSET', ARGV[1], 'state', ARGV[2])
    changed(ARGV[3], ARGV[2])
    return 1
  end
end
return 0
"""

#: Bring a batch to rest if each of its parts has an end, and it is under way. All in one: a batch that was resumed
#: meanwhile has parts without an end again.
REST = """
local rest = {running = 'finished', paused = 'finished', aborting = 'aborted'}
local state = rest[redis.call('HGET', ARGV[1], 'state')]
local total = tonumber(redis.call('HGET', ARGV[1], 'total') or '0')
if state and redis.call('HLEN', ARGV[1] .. ':ends') >= total then
  redis.call('HSET', ARGV[1], 'state', state)
  changed(ARGV[2], state)
end
return 0
"""


class BatchState(StrEnum):
    """Where a batch stands."""

    PLANNING = "planning"
    RUNNING = "running"
    PAUSED = "paused"
    ABORTING = "aborting"
    FINISHED = "finished"
    ABORTED = "aborted"
    REFUSED = "refused"

    @property
    def final(self) -> bool:
        """Whether nothing of it will move unless somebody asks again."""
        return self in {BatchState.FINISHED, BatchState.ABORTED, BatchState.REFUSED}


@dataclass(frozen=True)
class Part:
    """One line of a batch: what is to be moved, and by which migration that is tried now.

    ``auto`` says that placement chose the destination, and may choose another one for the next try; ``avoid`` are those
    that failed. ``bytes`` is what the tree takes at its destination.
    """

    number: int
    plan: Json
    migration: str
    priority: int = 0
    auto: bool = False
    bytes: int = 0
    tries: int = 1
    avoid: tuple[str, ...] = ()

    def again(self, destination: str | None = None) -> Part:
        """Return the part for its next try, perhaps to another destination; the same question has the same answer."""
        following = str(uuid5(NAMESPACE_OID, self.migration))
        plan = self.plan | ({"destination": destination} if destination else {})
        return replace(self, plan=plan, migration=following, tries=self.tries + 1)

    @property
    def may_be_tried_again(self) -> bool:
        """Whether there are tries left."""
        return self.tries < MAX_TRIES


@dataclass(frozen=True)
class Record:
    """A batch as it stands: ``ended`` of its ``total`` parts have come to an end.

    ``roll_back`` says what becomes of those under way when it is aborted.
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
    roll_back: bool = False

    def to_json(self, ends: Mapping[int, Json]) -> Json:
        """Return the batch with what its parts came to, as ``.get()`` and ``--json`` give it (``docs/reference``)."""
        told = {name: value for name, value in asdict(self).items() if name not in {"ended", "roll_back"}}
        migrations = [{"line": number, **ends[number]} for number in sorted(ends)]
        counts = states_of(ends, self.total)
        return {**told, "stays": list(self.stays), "counts": counts, "migrations": migrations}


class Batches:
    """Reads and writes batches. Every method raises StoreUnreachable when Redis does not answer."""

    def __init__(self, store: Store, keep_s: int) -> None:
        self._store = store
        self._keep_s = keep_s

    def plan(self, batch: str, kind: str, asked: Json, by: str) -> None:
        """Enter a batch that was asked for, and is being looked at."""
        now = time.time()
        told = {"kind": kind, "asked": asked, "by": by, "created": now}
        self._store.write([["ZREMRANGEBYSCORE", INDEX, "-inf", f"({now - self._keep_s}"], ["ZADD", INDEX, now, batch]])
        self._put(batch, told, BatchState.PLANNING)

    def open(self, batch: str, parts: Iterable[Part], stays: Sequence[Json]) -> None:
        """Enter the parts of a batch, and let it run; nothing of it is queued yet."""
        found = list(parts)
        for start in range(0, len(found), CHUNK):
            self.keep(batch, *found[start : start + CHUNK])
        self._put(batch, {"total": len(found), "stays": list(stays)}, BatchState.RUNNING)

    def refuse(self, batch: str, failure: Json) -> None:
        """Enter that nothing of a batch will be begun, and why."""
        self._put(batch, {"failure": failure}, BatchState.REFUSED)

    def keep(self, batch: str, *parts: Part) -> None:
        """Enter parts as they are now."""
        name = f"{_key(batch)}:parts"
        words = [word for part in parts for word in (str(part.number), json.dumps(asdict(part)))]
        self._store.write([["HSET", name, *words], ["EXPIRE", name, self._keep_s]])

    def record(self, batch: str) -> Record | None:
        """Return a batch, None if nobody knows it."""
        told = self._store.fields(_key(batch))
        if "kind" not in told:
            return None
        state = BatchState(told.pop("state"))
        known = {each.name for each in fields(Record)}
        said = {name: json.loads(value) for name, value in told.items() if name in known}
        return Record(id=batch, state=state, ended=self._store.size(f"{_key(batch)}:ends"), **said)

    def parts(self, batch: str) -> list[Part]:
        """Return the parts of a batch in the order of its lines."""
        return sorted(map(_part, self._store.fields(f"{_key(batch)}:parts").values()), key=lambda part: part.number)

    def part(self, batch: str, number: int) -> Part | None:
        """Return one part, None if there is none."""
        value = self._store.field(f"{_key(batch)}:parts", str(number))
        return _part(value) if value else None

    def end(self, batch: str, number: int, end: Json) -> int | None:
        """Enter the end of a part; return how many have none yet, None if this one had one already.

        What is known takes the place of a doubt, and what is cleaned up that of what was not; nothing else changes.
        """
        told = (_key(batch), number, json.dumps(end), batch, *PROVISIONAL)
        new, left = self._store.script(CHANGED + END, told)
        self._store.write([["EXPIRE", f"{_key(batch)}:ends", self._keep_s]])
        return int(left) if int(new) else None

    def ends(self, batch: str) -> dict[int, Json]:
        """Return what parts came to, by their numbers."""
        return {int(name): json.loads(value) for name, value in self._store.fields(f"{_key(batch)}:ends").items()}

    def has_ended(self, batch: str, number: int) -> bool:
        """Whether a part has come to an end, be it a doubt."""
        return self._store.field(f"{_key(batch)}:ends", str(number)) is not None

    def reopen(self, batch: str, parts: Sequence[Part]) -> None:
        """Let parts that have ended be tried again."""
        self.keep(batch, *parts)
        self._store.write([["HDEL", f"{_key(batch)}:ends", *(str(part.number) for part in parts)]])

    def turn(self, batch: str, to: BatchState, *states: BatchState) -> bool:
        """Change the state of a batch if it is one of ``states``; False if it is another one."""
        return bool(self._store.script(CHANGED + TURN, [_key(batch), to, batch, *states]))

    def rest(self, batch: str) -> None:
        """Enter that a batch has ended, or was aborted, if each of its parts has come to an end; again is harmless."""
        self._store.script(CHANGED + REST, [_key(batch), batch])

    def abort(self, batch: str, *, roll_back: bool) -> None:
        """Enter that nothing more of a batch shall begin, and whether those under way shall be rolled back."""
        self._store.put_fields(_key(batch), {"roll_back": json.dumps(roll_back)}, expire_s=self._keep_s)
        self.turn(batch, BatchState.ABORTING, BatchState.RUNNING, BatchState.PAUSED)

    def latest(self, count: int) -> list[Record]:
        """Return the batches that were asked for last, newest first."""
        found = (self.record(batch) for batch in self._store.highest(INDEX, count))
        return [record for record in found if record]

    def promised(self) -> list[Planned]:
        """Return the memory that batches will take at their destinations, and that placement must leave to them."""
        found = []
        for record in self.latest(LATEST):
            if not record.state.final:
                ended = self.ends(record.id).keys()
                open_ones = (part for part in self.parts(record.id) if part.number not in ended)
                found += [Planned(part.plan["destination"], part.bytes) for part in open_ones]
        return found

    def find(self, prefix: str) -> Record:
        """Return the batch whose id begins so. Raises UsageError if there is none, or more than one."""
        ids = [batch for batch in self._store.highest(INDEX, 10_000) if batch.startswith(prefix)]
        record = self.record(ids[0]) if len(ids) == 1 else None
        if record is None:
            have = f"{len(ids)} batches have" if ids else "No batch has"
            raise UsageError(f"{have} an id that begins with {prefix!r}.", "`sojourn batches` shows them.")
        return record

    def is_my_turn_to_look(self, batch: str, every_s: float) -> bool:
        """Whether nobody else has looked after a batch for so long."""
        return self._store.claim(f"{_key(batch)}:{LOOKED}", every_s)

    def _put(self, batch: str, fields: Json, state: BatchState) -> None:
        encoded = {name: json.dumps(value) for name, value in fields.items()} | {"state": str(state)}
        words = [word for pair in encoded.items() for word in pair]
        told: list[str | float] = ["migration", batch, "kind", "batch", "data", "{}"]
        commands: list[list[str | float]] = [["HSET", _key(batch), *words], ["EXPIRE", _key(batch), self._keep_s]]
        self._store.write([*commands, ["XADD", EVENTS, "MAXLEN", "~", EVENTS_KEPT, "*", *told]])


def states_of(ends: Mapping[int, Json], total: int) -> dict[str, int]:
    """Return how many parts came to what; those without an end are ``waiting or under way``."""
    counts: dict[str, int] = {}
    for end in ends.values():
        counts[end["state"]] = counts.get(end["state"], 0) + 1
    open_ones = total - len(ends)
    return counts | ({"open": open_ones} if open_ones else {})


def _part(value: str) -> Part:
    said = json.loads(value)
    return Part(**said | {"avoid": tuple(said["avoid"])})


def _key(batch: str) -> str:
    return f"sojourn:batch:{batch}"
