"""The ledger, in a real Redis: what people see, live and afterwards."""

from __future__ import annotations

import itertools
import logging
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime
from uuid import uuid4

import pytest

from sojourn.cluster.account import Event
from sojourn.cluster.ledger import Ledger, key
from sojourn.cluster.registry import Registry
from sojourn.cluster.store import Store
from sojourn.errors import StoreUnreachable
from sojourn.model import Failure, Plan, State, StepRecord
from sojourn.security.seal import Seal
from sojourn.state.mark import Mark
from tests.integration.conftest import PLAN, Redis
from tests.integration.test_registry import ALPHA

FAILURE = Failure("CRIU_FAILED", "It broke.", "Mend it.", "dump", "alpha", "/log")
RESULT = {"state": "rolled back", "owner": "alpha", "failure": None, "downtime_ms": None}


@pytest.fixture
def store(redis: Redis) -> Store:
    """Give out a connection."""
    return Store(redis.url)


@pytest.fixture
def ledger(store: Store) -> Ledger:
    """Give out a ledger that forgets after a minute."""
    return Ledger(store, 60)


def test_a_migration_from_beginning_to_end(ledger: Ledger) -> None:
    """The account has what was recorded: plan, owner, steps in order, failure, result."""
    migration = str(uuid4())
    ledger.open(migration, PLAN)
    queued = ledger.account(migration)
    assert queued is not None
    assert (queued.plan, queued.state, queued.owner, queued.steps) == (
        PLAN,
        State.QUEUED,
        "alpha",
        (),
    )
    late, early = (
        StepRecord("dump", "alpha", 9.0),
        StepRecord("preflight", "beta", 5.0, 6.0, "fine"),
    )
    ledger.record_state(migration, State.RUNNING)
    ledger.record_step(migration, "source", late)
    ledger.record_step(migration, "destination", early)
    ledger.record_failure(migration, FAILURE)
    running = ledger.account(migration)
    assert running is not None
    assert (running.state, running.steps, running.failure) == (
        State.RUNNING,
        (early, late),
        FAILURE,
    )
    ledger.close(migration, RESULT)
    closed = ledger.account(migration)
    assert closed is not None
    assert (closed.state, closed.result) == (State.ROLLED_BACK, RESULT)


def test_the_first_failure_stays(ledger: Ledger) -> None:
    """What fails after it is its consequence: it is neither kept nor announced."""
    migration = str(uuid4())
    ledger.open(migration, PLAN)
    position = ledger.bookmark()
    ledger.record_failure(migration, FAILURE)
    ledger.record_failure(migration, Failure("REFUSED", "Too late.", step="restore", host="beta"))
    ledger.record_state(migration, State.ROLLED_BACK)
    account = ledger.account(migration)
    assert account is not None
    assert account.failure == FAILURE
    failure, state = _followed(ledger, position, 2)
    assert (failure.kind, failure.data["code"], state.kind) == ("failure", "CRIU_FAILED", "state")


def test_a_migration_expires_after_its_end(ledger: Ledger, store: Store, redis: Redis) -> None:
    """While it is open it does not expire; its time begins when it has ended."""
    migration = str(uuid4())
    ledger.open(migration, PLAN)
    assert store._redis.ttl(key(migration)) == -1
    ledger.close(migration, RESULT)
    assert 0 < store._redis.ttl(key(migration)) <= 60


def test_a_step_recorded_again_replaces_itself(ledger: Ledger) -> None:
    """The same step on the same side is one line; on the other side it is another."""
    migration = str(uuid4())
    ledger.open(migration, PLAN)
    for role, ended in (("source", None), ("source", 2.0), ("destination", 3.0)):
        ledger.record_step(migration, role, StepRecord("reserve", role, 1.0, ended, "x"))
    account = ledger.account(migration)
    assert account is not None
    assert sorted(step.ended or 0 for step in account.steps) == [2.0, 3.0]


def test_how_far_it_is(ledger: Ledger) -> None:
    """The last progress is kept while it is under way, for who looks now; the owner may change."""
    migration = str(uuid4())
    ledger.open(migration, PLAN)
    ledger.record_progress(migration, bytes=1, total=10)
    ledger.record_owner(migration, "beta")
    ledger.record_progress(migration, bytes=4, total=10, missing=6)
    ledger.record_command(migration, "/usr/bin/memcached -m 64")
    account = ledger.account(migration)
    assert account is not None
    assert account.to_json()["command"] == account.command == "/usr/bin/memcached -m 64"
    assert account.progress == {"bytes": 4, "total": 10, "missing": 6}
    assert (account.to_json()["owner"], account.to_json()["progress"]) == ("beta", account.progress)
    ledger.close(migration, RESULT)
    closed = ledger.account(migration)
    assert closed is not None
    assert closed.progress is None


def test_unknown(ledger: Ledger) -> None:
    """A migration that was not requested here is None, even if Redis was emptied in its middle."""
    assert ledger.account("ffffffff") is None
    ledger.record_state("eeeeeeee", State.RUNNING)
    assert ledger.account("eeeeeeee") is None


@pytest.mark.parametrize("part", ["plan", "state", "created"])
def test_a_record_that_is_not_whole_yet(ledger: Ledger, store: Store, part: str) -> None:
    """It is read as none, while a host writes it again after a loss of Redis's memory."""
    migration = str(uuid4())
    ledger.open(migration, PLAN)
    store.write([["HDEL", key(migration), part]])
    assert ledger.account(migration) is None


def test_latest_and_find(ledger: Ledger) -> None:
    """Newest first, as many as requested; an id is found by how it begins."""
    ids = [f"{n}aaaaaa{n}-{uuid4()}"[:36] for n in range(4)]
    for n, migration in enumerate(ids):
        ledger.open(migration, Plan(10 + n, "alpha", "beta"))
    assert [account.id for account in ledger.latest(3)] == ids[:0:-1]
    assert ledger.find("2aaaaaa2") == [ids[2]]
    assert set(ids) <= set(ledger.find(""))
    assert ledger.find("zz") == []


def _followed(ledger: Ledger, position: str, count: int) -> list[Event]:
    until = time.monotonic() + 5
    events = ledger.follow(position, lambda: time.monotonic() < until)
    return list(itertools.islice(filter(None, events), count))


def test_events_are_followed_live(ledger: Ledger) -> None:
    """A follower gets what happens behind its bookmark, in order, as it happens."""
    migration = str(uuid4())
    ledger.open(migration, PLAN)
    position = ledger.bookmark()
    with ThreadPoolExecutor(1) as pool:
        following = pool.submit(_followed, ledger, position, 3)
        ledger.record_state(migration, State.RUNNING)
        ledger.record_progress(migration, bytes=5, total=10)
        ledger.close(migration, RESULT)
        events = following.result(10)
    assert [(event.migration, event.kind) for event in events] == [
        (migration, kind) for kind in ("state", "progress", "state")
    ]
    assert [event.data for event in events] == [
        {"state": "running"},
        {"bytes": 5, "total": 10},
        {"state": "rolled back"},
    ]


def test_following_when_nothing_happens(ledger: Ledger) -> None:
    """A follower gets control now and then, and can end."""
    assert next(ledger.follow(ledger.bookmark())) is None
    assert list(ledger.follow(ledger.bookmark(), lambda: False)) == []


def test_a_ledger_out_of_reach(caplog: pytest.LogCaptureFixture) -> None:
    """Recording only warns, with the migration's id; reading and requesting raise."""
    ledger = Ledger(Store("redis://127.0.0.1:1/0"), 60)
    with caplog.at_level(logging.WARNING):
        ledger.record_state("0123abcd", State.RUNNING)
        ledger.record_step("0123abcd", "source", StepRecord("dump", "alpha", 1.0))
        ledger.record_progress("0123abcd", bytes=1)
        ledger.record_owner("0123abcd", "beta")
        ledger.record_failure("0123abcd", FAILURE)
        ledger.close("0123abcd", RESULT)
    assert len(caplog.records) == 6
    assert {record.__dict__["migration"] for record in caplog.records} == {"0123abcd"}
    for operation in (
        lambda: ledger.open("0123abcd", PLAN),
        lambda: ledger.account("0123abcd"),
        ledger.bookmark,
    ):
        with pytest.raises(StoreUnreachable):
            operation()


def test_an_operators_decision_and_doubt(ledger: Ledger) -> None:
    """The decision is kept for later readers, and in the account; a doubt has no owner."""
    migration = str(uuid4())
    decision = {"resolved": "source", "resolved_by": "ann@hub", "resolved_at": 1.0}
    ledger.open(migration, PLAN)
    assert ledger.resolution(migration) == {}
    ledger.record_resolution(migration, decision)
    ledger.record_doubt(migration)
    account = ledger.account(migration)
    assert account is not None
    resolved = (account.resolved, account.to_json()["resolved"], ledger.resolution(migration))
    assert resolved == (decision, decision, decision)
    assert (account.to_json()["state"], account.to_json()["owner"]) == ("in doubt", None)


def test_a_doubt_names_the_host_that_is_silent_and_since_when(ledger: Ledger, redis: Redis) -> None:
    """By its last announcement, whose mark does not expire; whoever answers again is not named."""
    registry, migration = Registry(Store(redis.url, seal=Seal("the key", "beta"))), str(uuid4())
    reader = Ledger(Store(redis.url, seal=Seal("the key", "hub")), 3600)
    ledger.open(migration, PLAN)
    before = reader.account(migration)
    assert before is not None
    assert before.to_json()["doubt"] is None
    ledger.record_doubt(migration)
    for name in (PLAN.source, PLAN.destination):
        registry.announce(replace(ALPHA, name=name), 10, Mark("1", 1))
    registry.withdraw(PLAN.destination)
    (account,) = reader.latest(1)
    doubt = account.to_json()["doubt"]
    assert doubt["silent"] == PLAN.destination
    since = datetime.fromisoformat(doubt["since"]).timestamp()
    assert time.time() - 10 < since <= time.time()
    registry.announce(replace(ALPHA, name=PLAN.destination), 10, Mark("1", 1))
    again = reader.account(migration)
    assert again is not None
    assert again.to_json()["doubt"]["silent"] is None
