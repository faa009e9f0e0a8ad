"""The queue of migrations in Redis: fair between batches, within limits that are held as leases.

A **batch** is what was asked for at one go. Batches take turns: each hands out one migration before any hands out a
second one. Within a batch a higher priority goes first, then whoever came first. A **route** is a pair of source and
destination: all that wait for one route wait for the same two hosts, so only the first of each is ever looked at, and a
call costs as much with ten thousand queued as with ten.

Who takes a migration holds a **lease** on three places: one among those that leave the source, one among those that
come to the destination, one in the cluster. The hosts whose journals know it hold them from then on; all expire
together when nobody does. Then the migration is handed out again, so a migration is handed out *at least* once, and
perhaps while it is still at work: its id makes one migration of it, since the hosts' journals know it. Whoever learns
that it has come to its end says so by that id. A ``take`` whose answer is lost is sent again, and its **ticket** brings
the same answer.

Each handing out is a try. One whose lease expires MAX_TRIES times is given up and waits to be told; nothing is handed
out for ever.

Keys, all beginning with ``sojourn:queue:``; none expires but where it says so:

``ids``                   set: every migration that is known here
``entry:<id>``            hash: ``batch``, ``priority``, ``source``, ``destination``, ``plan`` (JSON), ``number`` (order
                          of arrival), ``queued`` (ms), ``tries``, ``state`` (waiting, later, taken, given-up),
                          ``holder``, ``ticket``; ``why`` it was given up
``turns``                 sorted set: batches with something waiting, by the turn they took last or came in; lowest next
``routes:<batch>``        sorted set: the batch's routes with something waiting, by the score of the first that waits
``line:<batch>:<route>``  sorted set: the ids that wait, by priority and arrival
``later``                 sorted set: ids that wait for a time, by that time (ms)
``taken``                 sorted set: ids that were handed out, by the end of their lease (ms): the cluster's places
``out:<host>``            sorted set: the same for those that leave a host; expires with its last lease
``in:<host>``             sorted set: the same for those that come to a host; expires with its last lease
``asked:<ticket>``        text: the id that a call was given, for when its answer is lost and it comes again; expires
                          like a lease
``given-up``              sorted set: ids that were given up, by when (ms)
``paused``                set: batches of which nothing is handed out until they are resumed
``shut:out:<host>``       text: since when (ms) a host is known to be silent; expires where nobody finds it so again
``shut:in:<host>``        text: the same for a host that is silent or cordoned
``looked``                text: there while a host has looked after the queue just now
``number``, ``turn``      counters

Every operation is one script, so each is atomic. Time is Redis's own: no client's clock counts.
Besides, what hosts have announced and which are cordoned is read, as ``sojourn/registry.py`` keeps it.
All of it can be lost without endangering a process: what waited is then not begun.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sojourn.errors import UsageError
from sojourn.model import MIGRATION_ID, Json, Plan
from sojourn.registry import CORDONED, ROOM, HostInfo
from sojourn.store import Store

#: So often a migration is handed out before it is given up.
MAX_TRIES = 3

#: A part of a batch that failed waits so long before its second try, and twice as long each time after.
BACK_OFF_S = 5.0

#: So many routes whose hosts are full one ``take`` looks past. If that was not enough, the batches it looked at go
#: behind the others, and the next ``take`` looks at those.
LOOK = 500

#: What waits for a host that has been silent or cordoned for so long is handed out all the same: whoever takes it finds
#: that it can not begin, and says so. A host that only restarts is back sooner.
SHUT_S = 10.0

#: A host that nobody found silent or cordoned for so long, and for two leases, may have been back meanwhile: when it is
#: found so again, its time begins anew.
SHUT_KEPT_S = 60.0

#: So many that are due, and as many whose lease has expired, one ``take`` brings back into the line.
SWEEP = 100

#: So many entries one script puts into the queue: few milliseconds in which Redis answers nobody else.
CHUNK = 100

#: Priorities go from minus to plus this; with the order of arrival they must fit into the 53 bits of a score.
PRIORITIES = 1000

BATCH_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")

PRELUDE = f"""
local MAX_TRIES, SWEEP, Q = {MAX_TRIES}, {SWEEP}, 'sojourn:queue:'
local ROOM, CORDONED = '{ROOM}', '{CORDONED}'
local SHUT, SHUT_KEPT = {SHUT_S:.0f} * 1000, {SHUT_KEPT_S:.0f} * 1000
local call, clock = redis.call, redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local function text(number) return string.format('%.0f', number) end

local function get(id)
  local flat, entry = call('HGETALL', Q .. 'entry:' .. id), {{}}
  for i = 1, #flat, 2 do entry[flat[i]] = flat[i + 1] end
  return entry
end
local function told(id) return {{id, call('HGETALL', Q .. 'entry:' .. id)}} end
local function set(id, ...) call('HSET', Q .. 'entry:' .. id, ...) end
local function route(entry) return entry.source .. '>' .. entry.destination end
local function line(batch, way) return Q .. 'line:' .. batch .. ':' .. way end
local function held(key) return call('ZCOUNT', Q .. key, '(' .. text(now), '+inf') end

-- A route stands where its first entry stands; one without entries is forgotten, and so is a batch without routes.
local function settle(batch, way)
  local first = call('ZRANGE', line(batch, way), 0, 0, 'WITHSCORES')
  if first[2] then
    call('ZADD', Q .. 'routes:' .. batch, first[2], way)
    if call('SISMEMBER', Q .. 'paused', batch) == 0 then
      call('ZADD', Q .. 'turns', 'NX', call('INCR', Q .. 'turn'), batch)
    end
  else
    call('ZREM', Q .. 'routes:' .. batch, way)
    if call('EXISTS', Q .. 'routes:' .. batch) == 0 then call('ZREM', Q .. 'turns', batch) end
  end
end

local function wait(id, entry)
  set(id, 'state', 'waiting')
  call('ZADD', line(entry.batch, route(entry)), entry.number - entry.priority * 2 ^ 40, id)
  settle(entry.batch, route(entry))
end

local function wait_until(id, due)
  set(id, 'state', 'later')
  call('ZADD', Q .. 'later', text(due), id)
end

-- Take an entry out of the place where it stands, whichever that is; its hash remains.
local function leave(id, entry)
  if entry.state == 'waiting' then
    call('ZREM', line(entry.batch, route(entry)), id)
    settle(entry.batch, route(entry))
  elseif entry.state == 'taken' then
    call('ZREM', Q .. 'taken', id)
    call('ZREM', Q .. 'out:' .. entry.source, id)
    call('ZREM', Q .. 'in:' .. entry.destination, id)
  else
    call('ZREM', Q .. entry.state, id)
  end
end

local function forget(id, entry)
  leave(id, entry)
  call('DEL', Q .. 'entry:' .. id)
  call('SREM', Q .. 'ids', id)
end

-- What nobody holds any more waits again, or is given up.
local function again(id, entry)
  leave(id, entry)
  if tonumber(entry.tries) < MAX_TRIES then return wait(id, entry) end
  set(id, 'state', 'given-up', 'why', entry.holder .. ' fell silent')
  call('ZADD', Q .. 'given-up', text(now), id)
end

local function sweep()
  for _, id in ipairs(call('ZRANGEBYSCORE', Q .. 'later', '-inf', text(now), 'LIMIT', 0, SWEEP)) do
    local entry = get(id)
    leave(id, entry)
    wait(id, entry)
  end
  for _, id in ipairs(call('ZRANGEBYSCORE', Q .. 'taken', '-inf', text(now), 'LIMIT', 0, SWEEP)) do
    again(id, get(id))
  end
end

local function lease(id, entry, length)
  call('ZADD', Q .. 'taken', text(now + length), id)
  for _, key in ipairs({{Q .. 'out:' .. entry.source, Q .. 'in:' .. entry.destination}}) do
    call('ZADD', key, text(now + length), id)
    call('PEXPIREAT', key, call('ZREVRANGE', key, 0, 0, 'WITHSCORES')[2])
  end
end
"""

PUT = """
local put = 0
for _, each in ipairs(cjson.decode(ARGV[1])) do
  if call('SADD', Q .. 'ids', each.id) == 1 then
    put = put + 1
    set(each.id, 'batch', each.batch, 'priority', each.priority, 'source', each.source, 'destination', each.destination,
      'plan', each.plan, 'number', call('INCR', Q .. 'number'), 'queued', text(now), 'tries', 0)
    if each.delay > 0 then wait_until(each.id, now + each.delay) else wait(each.id, get(each.id)) end
  end
end
return put
"""

TAKE = """
local ticket, holder, length, look, cluster = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local full, looked, passed = {}, 0, {}
local before = call('GET', Q .. 'asked:' .. ticket)
if before and get(before).ticket == ticket then return told(before) end
sweep()
if held('taken') >= cluster then return false end

-- Whether a host has been shut for so long that what waits for it must be told.
local function is_given_up(key)
  local shut = Q .. 'shut:' .. key
  call('SET', shut, text(now), 'NX')
  call('PEXPIRE', shut, math.max(SHUT_KEPT, 2 * length))
  return now - call('GET', shut) > SHUT
end

-- What a host has said that it lets out or in at once; nothing if it is silent, or if nothing may go there.
local function limit(way, host)
  local out, into = string.match(call('GET', ROOM .. host) or '', '^(%d+) (%d+)$')
  if way == 'out' then return tonumber(out) end
  return call('SISMEMBER', CORDONED, host) == 0 and tonumber(into) or nil
end

local function looks_full(key, most)
  if most == nil then return not is_given_up(key) end
  call('DEL', Q .. 'shut:' .. key)
  return held(key) >= most
end

local function has_room(way, host)
  local key = way .. ':' .. host
  if full[key] == nil then full[key] = looks_full(key, limit(way, host)) end
  return not full[key]
end

-- Go through a sorted set, lowest first, and read no more of it than is looked at.
local function members(name, bound)
  local page, at, size = {}, 0, 16
  return function()
    if at >= bound then return nil end
    if at % size == 0 then page = call('ZRANGE', Q .. name, at, at + size - 1) end
    at = at + 1
    return page[(at - 1) % size + 1]
  end
end

local function hand_out(batch, way)
  local id = call('ZRANGE', line(batch, way), 0, 0)[1]
  local entry = get(id)
  leave(id, entry)
  set(id, 'state', 'taken', 'holder', holder, 'ticket', ticket, 'tries', entry.tries + 1)
  lease(id, entry, length)
  call('ZADD', Q .. 'turns', 'XX', call('INCR', Q .. 'turn'), batch)
  call('SET', Q .. 'asked:' .. ticket, id, 'PX', length)
  return told(id)
end

for batch in members('turns', look) do
  for way in members('routes:' .. batch, look - looked) do
    looked = looked + 1
    local source, destination = string.match(way, '^(.*)>(.*)$')
    if has_room('out', source) and has_room('in', destination) then return hand_out(batch, way) end
  end
  passed[#passed + 1] = batch
  if looked >= look then break end
end
if looked >= look then
  local turn, behind = call('INCRBY', Q .. 'turn', #passed) - #passed, {}
  for place, batch in ipairs(passed) do
    behind[2 * place - 1], behind[2 * place] = turn + place, batch
  end
  call('ZADD', Q .. 'turns', unpack(behind))
end
return false
"""

HOLD = """
local held = 0
for i = 3, #ARGV do
  local id, entry = ARGV[i], get(ARGV[i])
  if entry.state and tonumber(entry.tries) > 0 then
    leave(id, entry)
    set(id, 'state', 'taken', 'holder', ARGV[1])
    lease(id, entry, tonumber(ARGV[2]))
    held = held + 1
  end
end
return held
"""

END = """
local entry = get(ARGV[1])
if entry.state == nil then return 0 end
forget(ARGV[1], entry)
return 1
"""

REMOVE = """
local entry = get(ARGV[1])
if entry.state == nil or entry.state == 'taken' then return 0 end
forget(ARGV[1], entry)
return 1
"""

REPRIORITISE = """
local id, entry = ARGV[1], get(ARGV[1])
if entry.state ~= 'waiting' and entry.state ~= 'later' then return 0 end
entry.priority = ARGV[2]
set(id, 'priority', entry.priority)
if entry.state == 'waiting' then wait(id, entry) end
return 1
"""

PAUSE = """
call('SADD', Q .. 'paused', ARGV[1])
return call('ZREM', Q .. 'turns', ARGV[1])
"""

RESUME = """
call('SREM', Q .. 'paused', ARGV[1])
if call('EXISTS', Q .. 'routes:' .. ARGV[1]) == 1 then
  call('ZADD', Q .. 'turns', 'NX', call('INCR', Q .. 'turn'), ARGV[1])
end
return 1
"""

WAITING = """
local count, lines, rows, out, into = tonumber(ARGV[1]), {}, {}, {}, {}
local function row(id, due)
  local entry = get(id)
  rows[#rows + 1] = {id, entry.batch, entry.priority, entry.source, entry.destination, entry.tries, due,
    held('out:' .. entry.source), held('in:' .. entry.destination)}
end
local batches, paused = call('ZRANGE', Q .. 'turns', 0, count - 1), {}
for _, batch in ipairs(call('SMEMBERS', Q .. 'paused')) do
  batches[#batches + 1], paused[batch] = batch, true
end
for _, batch in ipairs(batches) do
  local all = {}
  for _, way in ipairs(call('ZRANGE', Q .. 'routes:' .. batch, 0, count - 1)) do
    local some = call('ZRANGE', line(batch, way), 0, count - 1, 'WITHSCORES')
    for i = 1, #some, 2 do all[#all + 1] = {tonumber(some[i + 1]), some[i]} end
  end
  table.sort(all, function(a, b) return a[1] < b[1] end)
  lines[#lines + 1] = all
end
for round = 1, count do
  for _, all in ipairs(lines) do
    if all[round] and #rows < count then
      row(all[round][2], 0)
      if paused[rows[#rows][2]] then rows[#rows][7] = -1 end
    end
  end
end
local later = call('ZRANGE', Q .. 'later', 0, count - 1, 'WITHSCORES')
for i = 1, #later, 2 do
  if #rows < count then row(later[i], math.max(1, later[i + 1] - now)) end
end
return {held('taken'), rows}
"""

GIVEN_UP = """
local rows = {}
for _, id in ipairs(call('ZRANGE', Q .. 'given-up', 0, ARGV[1] - 1)) do rows[#rows + 1] = told(id) end
return rows
"""

COUNTS = """
local later, taken, given_up = call('ZCARD', Q .. 'later'), call('ZCARD', Q .. 'taken'), call('ZCARD', Q .. 'given-up')
return {call('SCARD', Q .. 'ids') - later - taken - given_up, later, taken, given_up}
"""


class Standing(StrEnum):
    """Where a migration stands in the queue."""

    WAITING = "waiting"
    LATER = "later"
    TAKEN = "taken"
    GIVEN_UP = "given-up"


@dataclass(frozen=True)
class Limits:
    """How many migrations from the queue may be under way at once: in the cluster, and out of and into each host.

    For people who ask why something waits. ``take`` itself asks what the hosts of each route have announced, at that
    instant; what waits for one that is silent or cordoned longer than SHUT_S is handed out to be told so.
    """

    cluster: int
    outgoing: Mapping[str, int]
    incoming: Mapping[str, int]

    @classmethod
    def of(cls, hosts: Mapping[str, HostInfo | None], cluster: int) -> Limits:
        """Return the limits that hosts announce: silent ones have none, and nothing goes to those that are cordoned."""
        alive = [info for info in hosts.values() if info]
        return cls(
            cluster,
            {info.name: info.max_outgoing for info in alive},
            {info.name: info.max_incoming for info in alive if not info.cordoned},
        )


@dataclass(frozen=True)
class Entry:
    """A migration to queue: its id, the batch it belongs to, and what was asked for.

    ``plan`` holds the options of a Plan, source and destination among them. A higher ``priority`` goes first in its
    batch. It is not handed out before ``delay_s`` have passed.
    """

    id: str
    batch: str
    plan: Json
    priority: int = 0
    delay_s: float = 0

    def check(self) -> None:
        """Raise UsageError for anything that can not be queued; what was queued by another version is not checked."""
        if not MIGRATION_ID.fullmatch(self.id):
            raise UsageError(f"{self.id!r} is not the id of a migration.")
        if not BATCH_ID.fullmatch(self.batch):
            raise UsageError(f"{self.batch!r} is not the id of a batch.")
        check_priority(self.priority)
        Plan.from_json(self.plan)

    def packed(self) -> Json:
        """Return what the script that queues it reads. Raises UsageError."""
        self.check()
        named = {"id": self.id, "batch": self.batch, "priority": self.priority, "delay": _ms(self.delay_s)}
        hosts = {"source": self.plan["source"], "destination": self.plan["destination"]}
        return {**named, **hosts, "plan": json.dumps(self.plan)}


@dataclass(frozen=True)
class Taken:
    """A migration that was handed out, and for which time."""

    entry: Entry
    tries: int


@dataclass(frozen=True)
class GivenUp:
    """A migration that was handed out too often, and what became of the last time."""

    entry: Entry
    tries: int
    why: str


@dataclass(frozen=True)
class Waiting:
    """One that waits, for people: its position in the whole queue, and why it waits."""

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
    """Reads and writes the queue. Every method raises StoreUnreachable when Redis does not answer."""

    def __init__(self, store: Store, lease_s: float) -> None:
        self._store = store
        self._lease_s = lease_s

    def put(self, entries: Iterable[Entry]) -> int:
        """Queue migrations and return how many are new: an id that is queued already stays as it is.

        Raises UsageError before any is queued. Some hundreds at a time are queued at one instant; if Redis goes away
        in between, put all of them again.
        """
        packed = [each.packed() for each in entries]
        chunks = [packed[start : start + CHUNK] for start in range(0, len(packed), CHUNK)]
        return sum(int(self._run(PUT, json.dumps(chunk))) for chunk in chunks)

    def take(self, holder: str, cluster: int, look: int = LOOK) -> Taken | None:
        """Return the migration whose turn it is among those for which there is room, and hold its places; or None.

        At most ``cluster`` are under way at once, and on each host as many as it announces. ``look`` bounds past how
        many routes whose hosts are full it looks.
        """
        ticket = uuid.uuid4().hex
        answer = self._run(TAKE, ticket, holder, _ms(self._lease_s), look, cluster)
        if answer is None:
            return None
        entry, fields = _entry(answer)
        return Taken(entry, int(fields["tries"]))

    def hold(self, migrations: Sequence[str], holder: str) -> int:
        """Hold the places of what is under way by a host's journal, whoever took it; return how many that are.

        One whose lease had expired has its places again at once, as it never stopped using them. What is not in the
        queue is passed over.
        """
        return int(self._run(HOLD, holder, _ms(self._lease_s), *migrations)) if migrations else 0

    def end(self, migration: str) -> bool:
        """Forget a migration that has come to its end, wherever it stands; False if nobody knows it here."""
        return bool(self._run(END, migration))

    def is_my_turn_to_look(self, every_s: float) -> bool:
        """Whether nobody else in the cluster has looked after the queue for so long; if so, the caller should."""
        return self._store.claim("sojourn:queue:looked", every_s)

    def standing(self, migration: str) -> Standing | None:
        """Return where a migration stands, None if it is not in the queue."""
        state = self._store.field(f"sojourn:queue:entry:{migration}", "state")
        return Standing(state) if state else None

    def remove(self, migration: str) -> bool:
        """Take a migration out that waits or was given up; False if it is under way, or not known."""
        return bool(self._run(REMOVE, migration))

    def pause(self, batch: str) -> None:
        """Hand out nothing more of a batch; what is under way goes on."""
        self._run(PAUSE, batch)

    def resume(self, batch: str) -> None:
        """Hand out what waits of a batch again."""
        self._run(RESUME, batch)

    def has_waiting(self, batch: str) -> bool:
        """Whether anything of a batch waits for its turn."""
        return bool(self._store.highest(f"sojourn:queue:routes:{batch}", 1))

    def reprioritise(self, migration: str, priority: int) -> bool:
        """Give a migration that waits another priority; False if it does not wait. Raises UsageError."""
        check_priority(priority)
        return bool(self._run(REPRIORITISE, migration, priority))

    def waiting(self, limits: Limits, count: int = 100) -> list[Waiting]:
        """Return the first that wait, in the order in which they would go if all hosts had room, and why they wait."""
        taken, rows = self._run(WAITING, count)
        return [_waiting(place, row, int(taken), limits) for place, row in enumerate(rows, 1)]

    def given_up(self, count: int = 100) -> list[GivenUp]:
        """Return migrations that were given up, the oldest first; ``remove`` each when that was told to people."""
        found = [_entry(row) for row in self._run(GIVEN_UP, count)]
        return [GivenUp(entry, int(fields["tries"]), fields["why"]) for entry, fields in found]

    def counts(self) -> Counts:
        """Return how many there are of each kind."""
        return Counts(*(int(number) for number in self._run(COUNTS)))

    def _run(self, script: str, *arguments: str | int) -> Any:  # noqa: ANN401  (each script has an answer of its own)
        return self._store.script(PRELUDE + script, arguments)


def back_off_s(tries: int) -> float:
    """Return how long a part of a batch waits that has failed so often."""
    return float(BACK_OFF_S * 2 ** (tries - 1))


def check_priority(priority: object) -> None:
    """Raise UsageError for anything that is no priority."""
    if not isinstance(priority, int) or isinstance(priority, bool) or abs(priority) > PRIORITIES:
        raise UsageError(f"A priority is a whole number from -{PRIORITIES} to {PRIORITIES}, not {priority!r}.")


def _ms(seconds: float) -> int:
    return max(0, int(seconds * 1000))


def _entry(told: Sequence[Any]) -> tuple[Entry, dict[str, str]]:
    """Return an entry and all its fields from what a script told of it."""
    name, flat = told
    fields = dict(zip(flat[::2], flat[1::2], strict=True))
    return Entry(name, fields["batch"], json.loads(fields["plan"]), int(fields["priority"])), fields


def _waiting(position: int, row: Sequence[Any], taken: int, limits: Limits) -> Waiting:
    name, batch, priority, source, destination, tries, due, out, into = row
    if int(due) < 0:
        why = "its batch is paused"
    elif int(due):
        why = f"not before {int(due) / 1000:.0f} s from now"
    else:
        why = _why_it_waits(source, destination, (int(out), int(into), taken), limits)
    return Waiting(position, name, batch, int(priority), source, destination, int(tries), why)


def _why_it_waits(source: str, destination: str, counts: tuple[int, int, int], limits: Limits) -> str:
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
