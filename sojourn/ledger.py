"""The ledger: a copy of every migration in Redis, for people. It can be lost; the journals are the truth.

Keys:

``sojourn:migration:<id>``  hash: ``plan``, ``state``, ``created``, ``owner``, ``failure``, ``result``, ``resolved``,
                            ``part`` (its batch and line there), ``tallied`` (counted in ``sojourn.tally``) and one
                            field ``step:<role>:<name>`` per step, each as JSON; expires some days after the end
``sojourn:migrations``      sorted set: ids by the time they were asked for
``sojourn:open``            hash: state by id, of those that have not ended or of which something is left to do
``sojourn:ledger:<host>``   there while this ledger holds what the host's journal knows; gone when Redis was emptied
``sojourn:events``          stream: one entry per transition and per progress mark; keeps the last ten thousand

Telling the ledger never fails a migration: if Redis is away, a warning is logged and the work goes on.
"""

from __future__ import annotations

import contextlib
import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sojourn import tally
from sojourn.errors import StoreUnreachable
from sojourn.model import Failure, Json, Plan, State, StepRecord
from sojourn.store import Store

log = logging.getLogger(__name__)

INDEX = "sojourn:migrations"
OPEN = "sojourn:open"
EVENTS = "sojourn:events"
EVENTS_KEPT = 10_000

#: The states in which a migration is open: it moves, or somebody should look after it.
OPEN_STATES = tuple(state for state in State if not state.definite or state is State.CLEANUP_PENDING)

#: Let the place among the open ones be what the state says, whoever wrote that.
PLACE = """
local state = redis.call('HGET', ARGV[1], 'state')
for i = 4, #ARGV do
  if state == cjson.encode(ARGV[i]) then return redis.call('HSET', ARGV[2], ARGV[3], ARGV[i]) end
end
return redis.call('HDEL', ARGV[2], ARGV[3])
"""

#: Return the open ones; forget those that the ledger has forgotten.
ALL_OPEN = """
local all, known = redis.call('HGETALL', ARGV[1]), {}
for i = 1, #all, 2 do
  if redis.call('EXISTS', ARGV[2] .. all[i]) == 1 then
    known[#known + 1], known[#known + 2] = all[i], all[i + 1]
  else
    redis.call('HDEL', ARGV[1], all[i])
  end
end
return known
"""

#: So many results are read in one round trip.
READ_AT_ONCE = 500

#: How long one blocking read waits before it looks whether it should go on.
WAIT_S = 1.0


Command = list[str | float]


def key(migration: str) -> str:
    """Return the key of a migration's hash."""
    return f"sojourn:migration:{migration}"


@dataclass(frozen=True)
class Account:
    """One migration as the ledger had it at one instant, or as one host's journal knows it in its ``role``."""

    id: str
    plan: Plan
    state: State
    created: float
    owner: str | None
    steps: tuple[StepRecord, ...]
    failure: Failure | None = None
    result: Json | None = None
    role: str = ""
    resolved: Json | None = None
    part: Json | None = None

    def to_json(self) -> Json:
        """Return the migration as ``--json`` gives it, finished or not."""
        if self.result and self.result["state"] == self.state:
            return self.result
        return {
            "id": self.id,
            "state": self.state,
            **self.plan.to_json(),
            "owner": self.owner,
            "steps": [asdict(step) for step in self.steps],
            "failure": asdict(self.failure) if self.failure else None,
            "resolved": self.resolved,
        }


@dataclass(frozen=True)
class Event:
    """One thing that happened to a migration. ``kind`` is state, step or progress."""

    migration: str
    kind: str
    data: Json


class Ledger:
    """Reads and writes the ledger."""

    def __init__(self, store: Store, keep_s: int) -> None:
        self._store = store
        self._keep_s = keep_s

    def open(self, migration: str, plan: Plan, part: Json | None = None) -> None:
        """Enter a migration that was asked for, and of which batch it is a part. Raises StoreUnreachable."""
        self.open_all([(migration, plan, part)])

    def open_all(self, asked: Iterable[tuple[str, Plan, Json | None]]) -> None:
        """Enter many at one go. Raises StoreUnreachable: without Redis nothing starts."""
        now = time.time()
        commands: list[Command] = [["ZREMRANGEBYSCORE", INDEX, "-inf", f"({now - self._keep_s}"]]
        for migration, plan, part in asked:
            fields: Json = {"plan": plan.to_json(), "state": State.QUEUED, "created": now, "owner": plan.source}
            told = _encoded(fields | ({"part": part} if part else {}))
            commands.append(["HSET", key(migration), *(word for pair in told.items() for word in pair)])
            commands.append(["ZADD", INDEX, "NX", now, migration])
            commands.append(_placed(migration, State.QUEUED))
            commands.append(_event(migration, "state", {"state": State.QUEUED}))
        self._store.write(commands)

    def tell_state(self, migration: str, state: State) -> None:
        """Say where the migration stands."""
        self._tell(migration, "state", {"state": state}, {"state": state}, [_placed(migration, state)])

    def tell_doubt(self, migration: str) -> None:
        """Say that nobody knows who owns the process, until a host answers or an operator decides."""
        told: Json = {"state": State.IN_DOUBT, "owner": None}
        self._tell(migration, "state", {"state": State.IN_DOUBT}, told, [_placed(migration, State.IN_DOUBT)])

    def tell_word(self, migration: str, word: Json) -> None:
        """Keep an operator's word for whichever host comes back later. Raises StoreUnreachable."""
        self._store.put_fields(key(migration), _encoded({"resolved": word}))

    def word(self, migration: str) -> Json:
        """Return an operator's word on a migration as facts; empty if nobody has said one. Raises StoreUnreachable."""
        word = self._store.field(key(migration), "resolved")
        return dict(json.loads(word)) if word else {}

    def tell_step(self, migration: str, role: str, step: StepRecord) -> None:
        """Say that a step began, ended or failed."""
        told = vars(step)
        self._tell(migration, "step", {"role": role, **told}, {f"step:{role}:{step.name}": told})

    def tell_progress(self, migration: str, **numbers: float) -> None:
        """Say how far a step has come; kept nowhere but in the stream of events."""
        self._tell(migration, "progress", numbers, None)

    def tell_failure(self, migration: str, failure: Failure) -> None:
        """Say why the migration will not go as asked. The first failure stays: what follows is its consequence."""
        with self._unless_away(migration, "failure"):
            if self._store.put_field_once(key(migration), "failure", json.dumps(asdict(failure))):
                self._announce(migration, "failure", asdict(failure))

    def close(self, migration: str, result: Json) -> None:
        """Enter the end of a migration, and when it will be forgotten; count it, if it is one that will stand."""
        state = State(result["state"])
        ended = {
            "state": result["state"],
            "owner": result["owner"],
            "result": result,
            "failure": result["failure"],
        }
        also: list[Command] = [["EXPIRE", key(migration), self._keep_s], _placed(migration, state)]
        counted = [tally.command(key(migration), result)] if state.definite else []
        self._tell(migration, "state", {"state": state}, ended, [*also, *counted])

    def has_heard(self, host: str) -> bool:
        """Whether this ledger holds what the host's journal knows. Raises StoreUnreachable."""
        return self._store.values([_heard(host)]) != [None]

    def hear(self, host: str, accounts: Iterable[Account]) -> None:
        """Take in again what a host's journal knows: a final state overrules, the rest fills gaps.

        Raises StoreUnreachable.
        """
        for account in accounts:
            fields: Json = {f"step:{account.role}:{step.name}": asdict(step) for step in account.steps}
            told: Json = {"plan": account.plan.to_json(), "created": account.created}
            ends: Json = {"state": account.state, "owner": account.owner}
            self._store.put_fields(key(account.id), _encoded(fields | told | (ends if account.state.final else {})))
            kept = ends | ({"resolved": account.resolved} if account.resolved else {})
            for name, value in _encoded(kept).items():
                self._store.put_field_once(key(account.id), name, value)
            self._store.rank(INDEX, account.id, account.created)
            self._store.script(PLACE, [key(account.id), OPEN, account.id, *OPEN_STATES])
        self._store.put(_heard(host), "", expire_s=self._keep_s)

    def account(self, migration: str) -> Account | None:
        """Return one migration, None if the ledger does not know it. Raises StoreUnreachable."""
        return _account(migration, self._store.fields(key(migration)))

    def accounts(self, migrations: Sequence[str]) -> list[Account]:
        """Return those of several migrations that the ledger knows, in their order. Raises StoreUnreachable."""
        read = self._store.fields_of([key(migration) for migration in migrations])
        found = (_account(migration, fields) for migration, fields in zip(migrations, read, strict=True))
        return [account for account in found if account]

    def latest(self, count: int) -> list[Account]:
        """Return the migrations that were asked for last, newest first. Raises StoreUnreachable."""
        return self.accounts(self._store.highest(INDEX, count))

    def find(self, prefix: str) -> list[str]:
        """Return the ids that begin so, for people who do not type whole ones."""
        return [migration for migration in self._store.highest(INDEX, EVENTS_KEPT) if migration.startswith(prefix)]

    def open_ones(self) -> dict[str, State]:
        """Return the states of those that move, and of those that somebody should look after, by id.

        Raises StoreUnreachable.
        """
        told = self._store.script(ALL_OPEN, [OPEN, key("")])
        return {migration: State(state) for migration, state in zip(told[::2], told[1::2], strict=True)}

    def results(self, since: float) -> Iterator[Json]:
        """Yield the results of those that were asked for since then and have ended, oldest first.

        Raises StoreUnreachable.
        """
        ids = self._store.ranked_from(INDEX, since)
        for start in range(0, len(ids), READ_AT_ONCE):
            keys = [key(migration) for migration in ids[start : start + READ_AT_ONCE]]
            yield from (json.loads(told) for told in self._store.field_of_each(keys, "result") if told)

    def tallied(self) -> dict[tuple[str, ...], float]:
        """Return what finished migrations add up to (``sojourn.tally``). Raises StoreUnreachable."""
        return tally.read(self._store.fields(tally.KEY))

    def bookmark(self) -> str:
        """Return a place in the stream of events: what comes later is behind it."""
        return self._store.last_id(EVENTS)

    def follow(self, after: str, going_on: Callable[[], bool] = lambda: True) -> Iterator[Event | None]:
        """Yield events as they come, and None about once a second when none came, while ``going_on``."""
        while going_on():
            events, after = self.read(after)
            if not events:
                yield None
            yield from events

    def read(self, after: str) -> tuple[list[Event], str]:
        """Return the events behind a place, and the place behind them; wait about a second for the first one."""
        entries = self._store.read(EVENTS, after, wait_s=WAIT_S)
        events = [Event(fields["migration"], fields["kind"], json.loads(fields["data"])) for _, fields in entries]
        return events, entries[-1][0] if entries else after

    def _tell(self, migration: str, kind: str, event: Json, fields: Json | None, also: Sequence[Command] = ()) -> None:
        """Write fields, what belongs to them, and the event, as one block."""
        with self._unless_away(migration, kind):
            told = _encoded(fields) if fields else {}
            commands: list[Command] = []
            if told:
                commands.append(["HSET", key(migration), *(word for pair in told.items() for word in pair)])
            self._store.write([*commands, *also, _event(migration, kind, event)])

    @contextlib.contextmanager
    def _unless_away(self, migration: str, kind: str) -> Iterator[None]:
        try:
            yield
        except StoreUnreachable as error:
            log.warning("The ledger was not told (%s): %s", kind, error, extra={"migration": migration})

    def _announce(self, migration: str, kind: str, data: Json) -> None:
        self._store.write([_event(migration, kind, data)])


def _placed(migration: str, state: State) -> Command:
    """Return the command that puts a migration among the open ones, or takes it out."""
    return ["HSET", OPEN, migration, state] if state in OPEN_STATES else ["HDEL", OPEN, migration]


def _event(migration: str, kind: str, data: Json) -> Command:
    """Return the command that appends an event to the stream."""
    fields = ("migration", migration, "kind", kind, "data", json.dumps(data))
    return ["XADD", EVENTS, "MAXLEN", "~", EVENTS_KEPT, "*", *fields]


def _heard(host: str) -> str:
    return f"sojourn:ledger:{host}"


def _encoded(fields: Json) -> dict[str, str]:
    return {name: json.dumps(value) for name, value in fields.items()}


def _account(migration: str, encoded: Mapping[str, str]) -> Account | None:
    fields: dict[str, Any] = {name: json.loads(value) for name, value in encoded.items()}
    if "plan" not in fields:
        return None
    steps = [StepRecord(**value) for name, value in fields.items() if name.startswith("step:")]
    return Account(
        id=migration,
        plan=Plan.from_json(fields["plan"]),
        state=State(fields["state"]),
        created=fields["created"],
        owner=fields.get("owner"),
        steps=tuple(sorted(steps, key=lambda step: step.started)),
        failure=Failure(**fields["failure"]) if fields.get("failure") else None,
        result=fields.get("result"),
        resolved=fields.get("resolved"),
        part=fields.get("part"),
    )
