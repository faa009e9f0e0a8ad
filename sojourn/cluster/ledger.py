"""The ledger: a copy of every migration in Redis, for people; the journals are the truth.

Keys:

``sojourn:migration:<id>``  hash: ``plan``, ``state``, ``created``, ``owner``, ``failure``,
                            ``result`` and ``resolved`` (sealed), ``part`` (its batch and line),
                            ``asked_by`` (who, as they claim),
                            ``command`` (the beginning of the command line),
                            ``progress`` (how far the step under way has come; gone at the end),
                            ``counted`` (counted in ``sojourn.cluster.counters``), one field
                            ``step:<role>:<name>`` per step and one field
                            ``notice:<hash>`` per notice of its end and receiver, each as JSON;
                            expires some days after the end
``sojourn:migrations``      sorted set: ids by the time of the request
``sojourn:open``            hash: state by id, of those that have not ended or need a clean-up
``sojourn:ledger:<host>``   present while this ledger has what the host's journal knows; gone when
                            Redis was emptied
``sojourn:events``          stream: one entry per transition and per progress mark; keeps the last
                            ten thousand

A record in the ledger never fails a migration: if Redis does not answer, a warning is logged and
the work goes on. All of it can be lost without endangering a process. Nobody acts on anything here
but an operator's word (``resolved``) and a migration's end (``result``), which are sealed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from itertools import chain, islice

from sojourn.cluster import counters, records
from sojourn.cluster.account import Account, Event, read_account, read_event
from sojourn.cluster.doubt import Doubt
from sojourn.cluster.registry import Registry
from sojourn.cluster.scripts import scripts_of
from sojourn.cluster.sealed import Sealed
from sojourn.cluster.store import Store
from sojourn.errors import StoreUnreachable
from sojourn.model import Failure, Json, Plan, State, StepRecord

log = logging.getLogger(__name__)

INDEX = "sojourn:migrations"
OPEN = "sojourn:open"
EVENTS = "sojourn:events"
EVENTS_KEPT = 10_000

#: The states in which a migration is open: it is under way, or somebody should look after it.
OPEN_STATES = tuple(
    state for state in State if not state.definite or state is State.CLEANUP_PENDING
)

#: What seals name an operator's decision on a dead host, and how a migration ended; the fields that
#: hold them.
WORD, RESULT = "operator's word", "end of a migration"
SEALED = {"resolved", "result"}

#: How many results are read in one round trip.
READ_AT_ONCE = 500

#: How many open migrations are shown at most, and by how many looks they are found: Redis may hold
#: any number that are none.
MOST_OPEN, LOOKS = 20_000, 200

#: How long one blocking read waits before it checks whether it should go on.
WAIT_S = 1.0

SCRIPTS = scripts_of("ledger")

Command = list[str | float]


def key(migration: str) -> str:
    """Return the key of a migration's hash."""
    return f"sojourn:migration:{migration}"


class Ledger:
    """Reads and writes the ledger."""

    def __init__(self, store: Store, keep_s: int) -> None:
        self._store, self._sealed = store, Sealed(store, {RESULT})
        self._registry = Registry(store)
        self._keep_s = keep_s

    def open(self, migration: str, plan: Plan, part: Json | None = None) -> None:
        """Record a migration that was requested, and which part of a batch it is.

        Raises StoreUnreachable.
        """
        self.open_all([(migration, plan, part)])

    def open_all(self, asked: Iterable[tuple[str, Plan, Json | None]]) -> None:
        """Record many requests in one go. Raises StoreUnreachable: without Redis nothing starts."""
        now = time.time()
        commands: list[Command] = [["ZREMRANGEBYSCORE", INDEX, "-inf", f"({now - self._keep_s}"]]
        for migration, plan, part in asked:
            fields: Json = {
                "plan": plan.to_json(),
                "state": State.QUEUED,
                "created": now,
                "owner": plan.source,
            }
            commands.append(_written(migration, fields | ({"part": part} if part else {})))
            # NX keeps the time of the first request if it is recorded twice.
            commands.append(["ZADD", INDEX, "NX", now, migration])
            commands.append(_placed(migration, State.QUEUED))
            commands.append(_event(migration, "state", {"state": State.QUEUED}))
        self._store.write(commands)

    def record_state(self, migration: str, state: State) -> None:
        """Record the state of a migration."""
        placed = _placed(migration, state)
        self._record(migration, "state", {"state": state}, {"state": state}, [placed])

    def record_doubt(self, migration: str) -> None:
        """Record that the owner is unknown until a host answers or an operator decides."""
        state: Json = {"state": State.IN_DOUBT}
        placed = _placed(migration, State.IN_DOUBT)
        self._record(migration, "state", state, state | {"owner": None}, [placed])

    def record_resolution(self, migration: str, decision: Json) -> None:
        """Keep an operator's decision for a host that comes back. Raises StoreUnreachable."""
        self._store.put_fields(key(migration), {"resolved": self._word(migration, decision)})

    def resolution(self, migration: str) -> Json:
        """Return an operator's decision as facts, empty without one. Raises StoreUnreachable."""
        word = self._store.field(key(migration), "resolved")
        return self._opened(WORD, migration, word) or {}

    def refuse_resolution(self, migration: str, decision: Json, why: str) -> None:
        """Log and count, once, that an operator's decision is not acted upon here."""
        self._sealed.refuse(WORD, migration, json.dumps(decision), why)

    def record_step(self, migration: str, role: str, step: StepRecord) -> None:
        """Record that a step began, ended or failed."""
        record = vars(step)
        event = {"role": role, **record}
        self._record(migration, "step", event, {f"step:{role}:{step.name}": record})

    def record_caller(self, migration: str, caller: str) -> None:
        """Record who asked for a migration, as they claim."""
        with self._tolerating_absence(migration, "caller"):
            self._store.write([_written(migration, {"asked_by": caller})])

    def record_owner(self, migration: str, owner: str) -> None:
        """Record which host owns the process, while the migration goes on."""
        with self._tolerating_absence(migration, "owner"):
            self._store.write([_written(migration, {"owner": owner})])

    def record_command(self, migration: str, command: str) -> None:
        """Record what the process is, by its command line, while the migration goes on."""
        with self._tolerating_absence(migration, "command"):
            self._store.write([_written(migration, {"command": command})])

    def record_progress(self, migration: str, **numbers: float) -> None:
        """Announce how far a step has come; the last of it is kept until the end."""
        self._record(migration, "progress", numbers, {"progress": numbers})

    def record_failure(self, migration: str, failure: Failure) -> None:
        """Record why a migration will not end as requested.

        The first failure stays: what follows is its consequence.
        """
        with self._tolerating_absence(migration, "failure"):
            # HSETNX decides which failure was the first, should several processes report one at
            # once.
            if self._store.put_field_once(key(migration), "failure", json.dumps(asdict(failure))):
                self._store.write([_event(migration, "failure", asdict(failure))])

    def record_notice(self, migration: str, receiver: str, notice: Json) -> None:
        """Record what became of a notice of the end; of ``receiver`` only a hash is kept."""
        # A web address may hold a secret.
        which = f"{notice['id']} {receiver}".encode()
        field = f"notice:{hashlib.sha256(which).hexdigest()[:16]}"
        expiry: Command = ["EXPIRE", key(migration), self._keep_s]
        self._record(migration, "notice", notice, {field: notice}, [expiry])

    def close(self, migration: str, result: Json) -> None:
        """Record the end of a migration, and when it expires; count it if the end is definite."""
        state = State(result["state"])
        ended = {
            "state": result["state"],
            "owner": result["owner"],
            "failure": result["failure"],
        }
        also: list[Command] = [
            ["HSET", key(migration), "result", self._sealed.text(RESULT, migration, result)],
            ["HDEL", key(migration), "progress"],
            ["EXPIRE", key(migration), self._keep_s],
            _placed(migration, state),
        ]
        counted = [counters.command(key(migration), result)] if state.definite else []
        self._record(migration, "state", {"state": state}, ended, [*also, *counted])

    def is_rebuilt_by(self, host: str) -> bool:
        """Whether this ledger has what the host's journal knows. Raises StoreUnreachable."""
        return self._store.values([_rebuilt(host)]) != [None]

    def lacks(self, accounts: Sequence[Account]) -> list[Account]:
        """Return those of which this ledger has no readable record, or not the steps of their host.

        Raises StoreUnreachable.
        """
        kept = {account.id: account for account in self.accounts([each.id for each in accounts])}
        return [each for each in accounts if each.id not in kept or _has_more(each, kept[each.id])]

    def rebuild(self, host: str, accounts: Iterable[Account], *, whole: bool = True) -> None:
        """Restore what a host's journal knows: a final state overrules, the rest fills gaps.

        Unless the ``whole`` ledger was lost, the state of a record that can be read stands.

        Raises StoreUnreachable.
        """
        for account in accounts:
            self._rebuild_one(account, whole=whole)
        # Last, so that a ledger that was rebuilt in part is rebuilt again.
        self._store.put(_rebuilt(host), "", expire_s=self._keep_s)

    def _rebuild_one(self, account: Account, *, whole: bool) -> None:
        if not self._store.holds_hash(key(account.id)):
            # Nothing of ours: a key of another type would refuse every record for good.
            self._store.delete(key(account.id))
        steps = {f"step:{account.role}:{step.name}": asdict(step) for step in account.steps}
        request: Json = {"plan": account.plan.to_json(), "created": account.created}
        request |= {"command": account.command} if account.command else {}
        state: Json = {"state": account.state, "owner": account.owner}
        # A row that is not final may be older than what others have recorded since.
        unknown = self.account(account.id) is None
        overruling = state if unknown or (whole and account.state.final) else {}
        self._store.put_fields(key(account.id), _encoded(steps | request | overruling))
        # The other host may have recorded an end already, which must stand.
        gaps = _encoded(state)
        if account.resolved:
            gaps["resolved"] = self._word(account.id, account.resolved)
        for name, value in gaps.items():
            self._store.put_field_once(key(account.id), name, value)
        self._store.rank(INDEX, account.id, account.created)
        self._store.script(SCRIPTS["place"], [key(account.id), OPEN, account.id, *OPEN_STATES])

    def account(self, migration: str) -> Account | None:
        """Return a migration, None if the ledger does not have it. Raises StoreUnreachable."""
        account = self._account(migration, self._store.fields(key(migration)))
        return account and self._with_doubts([account])[0]

    def accounts(self, migrations: Sequence[str]) -> list[Account]:
        """Return those of several migrations that it has, in order. Raises StoreUnreachable."""
        return list(self._accounts(migrations))

    def _accounts(self, migrations: Sequence[str]) -> Iterator[Account]:
        for start in range(0, len(migrations), READ_AT_ONCE):
            ids = migrations[start : start + READ_AT_ONCE]
            read = self._store.fields_of([key(migration) for migration in ids])
            found = (self._account(*pair) for pair in zip(ids, read, strict=True))
            yield from self._with_doubts([account for account in found if account])

    def _with_doubts(self, accounts: list[Account]) -> list[Account]:
        """Return accounts, those in doubt with what there is to know and to do about them."""
        doubtful = [one.plan for one in accounts if one.state is State.IN_DOUBT]
        if not doubtful:
            return accounts
        hosts = sorted({host for plan in doubtful for host in (plan.source, plan.destination)})
        contacts = self._registry.contacts(hosts)
        return [
            replace(one, doubt=Doubt(one.id, one.plan, one.frozen).describe(contacts))
            if one.state is State.IN_DOUBT
            else one
            for one in accounts
        ]

    def ids(self, count: int) -> list[str]:
        """Return the ids of the migrations that were requested last, newest first.

        Raises StoreUnreachable.
        """
        return self._store.highest(INDEX, count)

    def latest(self, count: int) -> list[Account]:
        """Return the migrations that were requested last, newest first. Raises StoreUnreachable."""
        return self.accounts(self.ids(count))

    def newest(self, since: float = 0, at_once: int = READ_AT_ONCE) -> Iterator[Account]:
        """Yield what was requested since then, newest first; read ``at_once`` in one go.

        Raises StoreUnreachable.
        """
        # What is requested meanwhile moves the others one place down: they would come twice.
        start, seen = 0, set[str]()
        while ids := self._store.highest(INDEX, at_once, start):
            for account in self.accounts([each for each in ids if each not in seen]):
                if account.created < since:
                    return
                yield account
            seen |= set(ids)
            start += at_once

    def find(self, prefix: str) -> list[str]:
        """Return the ids that begin with ``prefix``, for people who do not type whole ones."""
        return [
            migration
            for migration in self._store.highest(INDEX, EVENTS_KEPT)
            if migration.startswith(prefix)
        ]

    def open_ones(self) -> dict[str, State]:
        """Return the states of the open migrations by id, at most ``MOST_OPEN`` of them.

        Raises StoreUnreachable.
        """
        found: dict[str, State] = {}
        cursor, looks = "0", 0
        while len(found) < MOST_OPEN and looks < LOOKS:
            cursor, flat = self._store.script(SCRIPTS["some_open"], [OPEN, key(""), cursor])
            found |= _states(flat)
            looks += 1
            if cursor == "0":
                break
        return dict(islice(found.items(), MOST_OPEN))

    def results(self, since: float) -> Iterator[Json]:
        """Yield the results of those that were requested since then and have ended, oldest first.

        Raises StoreUnreachable.
        """
        ids = self._store.ranked_from(INDEX, since)
        for start in range(0, len(ids), READ_AT_ONCE):
            some = ids[start : start + READ_AT_ONCE]
            keys = [key(migration) for migration in some]
            texts = self._store.field_of_each(keys, "result")
            found = (self._result(*pair) for pair in zip(some, texts, strict=True))
            yield from (records.complete(result) for result in found if result)

    def counted(self) -> dict[tuple[str, ...], float]:
        """Return what finished migrations add up to, as ``counters`` has it.

        Raises StoreUnreachable.
        """
        return counters.read(self._store.some_fields(counters.KEY, counters.MOST))

    def bookmark(self) -> str:
        """Return the current position in the stream of events: what comes later is behind it."""
        return self._store.last_id(EVENTS)

    def follow(
        self, after: str, going_on: Callable[[], bool] = lambda: True
    ) -> Iterator[Event | None]:
        """Yield events as they come, and None after a second without any, while ``going_on``."""
        while going_on():
            events, after = self.read(after)
            if not events:
                yield None
            yield from events

    def read(self, after: str) -> tuple[list[Event], str]:
        """Return the events behind a position, and the position behind them.

        Waits about a second for the first one.
        """
        entries = self._store.read(EVENTS, after, wait_s=WAIT_S)
        found = (read_event(fields) for _, fields in entries)
        events = [event for event in found if event]
        return events, entries[-1][0] if entries else after

    def _word(self, migration: str, decision: Json) -> str:
        return self._sealed.text(WORD, migration, decision)

    def _account(self, migration: str, fields: Mapping[str, str]) -> Account | None:
        """Return a migration, without an operator's word or a result that nobody has sealed."""
        others = {name: text for name, text in fields.items() if name not in SEALED}
        account = read_account(migration, others)
        if account is None or not SEALED & fields.keys():
            return account
        word = self._opened(WORD, migration, fields.get("resolved"))
        return replace(account, resolved=word, result=self._result(migration, fields.get("result")))

    def _result(self, migration: str, text: str | None) -> Json | None:
        return records.result(self._opened(RESULT, migration, text))

    def _opened(self, kind: str, migration: str, text: str | None) -> Json | None:
        return self._sealed.content(kind, migration, text) if text else None

    def _record(
        self, migration: str, kind: str, event: Json, fields: Json, also: Sequence[Command] = ()
    ) -> None:
        """Write fields, the commands that belong to them, and the event, in one round trip."""
        written = [_written(migration, fields)] if fields else []
        with self._tolerating_absence(migration, kind):
            self._store.write([*written, *also, _event(migration, kind, event)])

    @contextlib.contextmanager
    def _tolerating_absence(self, migration: str, kind: str) -> Iterator[None]:
        try:
            yield
        except StoreUnreachable as error:
            log.warning(
                "Not recorded in the ledger (%s): %s", kind, error, extra={"migration": migration}
            )


def _has_more(account: Account, kept: Account) -> bool:
    """Whether a host knows steps of its own that are not kept, as if its records had been lost."""
    return not {(step.name, step.host) for step in account.steps} <= {
        (step.name, step.host) for step in kept.steps
    }


def _written(migration: str, fields: Json) -> Command:
    """Return the command that writes fields of a migration."""
    return ["HSET", key(migration), *chain(*_encoded(fields).items())]


def _placed(migration: str, state: State) -> Command:
    """Return the command that adds a migration to the open ones, or removes it there."""
    return ["HSET", OPEN, migration, state] if state in OPEN_STATES else ["HDEL", OPEN, migration]


def _event(migration: str, kind: str, data: Json) -> Command:
    """Return the command that appends an event to the stream."""
    # ``MAXLEN ~`` lets Redis drop whole nodes of the stream, which costs it far less than to keep
    # an exact number (https://redis.io/docs/latest/commands/xadd/).
    fields = ("migration", migration, "kind", kind, "data", json.dumps(data))
    return ["XADD", EVENTS, "MAXLEN", "~", EVENTS_KEPT, "*", *fields]


def _rebuilt(host: str) -> str:
    return f"sojourn:ledger:{host}"


def _encoded(fields: Json) -> dict[str, str]:
    return {name: json.dumps(value) for name, value in fields.items()}


def _states(flat: Sequence[str]) -> dict[str, State]:
    """Return the states of a flat list of ids and states, without those that are not known here."""
    found = (
        (migration, records.of(State, state))
        for migration, state in zip(flat[::2], flat[1::2], strict=True)
    )
    return {migration: state for migration, state in found if state}
