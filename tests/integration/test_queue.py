"""The queue, in a real Redis: order, limits, and what happens when holders fall silent."""

from __future__ import annotations

import json
import multiprocessing
import random
import sys
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from typing import Any

import pytest

from sojourn.cluster.queue import (
    ENTRY,
    LOOK,
    MAX_TRIES,
    SCRIPTS,
    SHUT_S,
    Counts,
    Entry,
    GivenUp,
    Limits,
    Queue,
    Standing,
    Taken,
    back_off_s,
)
from sojourn.cluster.registry import HostInfo, Registry
from sojourn.cluster.sealed import Sealed
from sojourn.cluster.store import Store
from sojourn.errors import UsageError
from sojourn.model import Json
from tests.conftest import eventually
from tests.integration.conftest import Redis

HOSTS = ("alpha", "beta", "gamma", "delta")


def limits(default: int = 1000, *, cluster: int = 1000, **of_host: tuple[int, int]) -> Limits:
    """Return limits that are the same for all hosts, except where ``of_host`` has (out, in)."""
    both = {name: of_host.get(name, (default, default)) for name in HOSTS}
    return Limits(
        cluster,
        {name: out for name, (out, _) in both.items()},
        {name: into for name, (_, into) in both.items()},
    )


#: Let exactly these hosts be announced, with these limits.
ALLOW = """
redis.call('DEL', 'sojourn:cordons', unpack(redis.call('KEYS', 'sojourn:room:*')))
for host, out in pairs(cjson.decode(ARGV[1])) do
  local into = cjson.decode(ARGV[2])[host]
  redis.call('SET', 'sojourn:room:' .. host, out .. ' ' .. (into or 0))
  if into == nil then redis.call('HSET', 'sojourn:cordons', host, '') end
end
"""


def allow(store: Store, allowed: Limits) -> None:
    """Let hosts announce their limits: without one for incoming a host is cordoned."""
    store.script(ALLOW, [json.dumps(dict(allowed.outgoing)), json.dumps(dict(allowed.incoming))])


class AllowingQueue(Queue):
    """The queue, whose hosts announce the limits that a test wants just before each ``take``."""

    def take(  # type: ignore[override]  # limits of hosts, too
        self, holder: str, allowed: Limits, look: int = LOOK
    ) -> Taken | None:
        """Announce them, and take."""
        allow(self._store, allowed)
        return super().take(holder, allowed.cluster, look)


WIDE, NOTHING = limits(), limits(cluster=0)


def entry(
    batch: str = "batch",
    priority: int = 0,
    source: str = "alpha",
    destination: str = "beta",
    **plan: Any,
) -> Entry:
    """Return a new entry."""
    return Entry(
        str(uuid.uuid4()),
        batch,
        {"pid": 4242, "source": source, "destination": destination, **plan},
        priority,
    )


def many(count: int, batch: str, source: str = "alpha", destination: str = "beta") -> list[Entry]:
    """Return some new entries of one batch."""
    return [entry(batch, source=source, destination=destination) for _ in range(count)]


@pytest.fixture
def store(redis: Redis) -> Store:
    """Give out an empty Redis."""
    store = Store(redis.url)
    store.script("return redis.call('FLUSHALL')")
    return store


@pytest.fixture
def queue(store: Store) -> Iterator[AllowingQueue]:
    """Give out an empty queue; at the end, its keys must be consistent."""
    yield AllowingQueue(store, 30)
    _check_sound(store)


def _check_sound(store: Store) -> None:
    """Check that every id is in one place, and that routes are ranked and none is empty."""
    keys = store.script("return redis.call('KEYS', 'sojourn:queue:*')")
    names = {key.removeprefix("sojourn:queue:") for key in keys}
    ids = store.members("sojourn:queue:ids")
    assert {name.removeprefix("entry:") for name in names if name.startswith("entry:")} == ids
    lines = {name for name in names if name.startswith("line:")}
    places = {"later", "taken", "given-up"} | lines
    placed = [migration for name in places for migration in _ranked(store, name)]
    assert sorted(placed) == sorted(ids)
    assert {f"routes:{batch}" for batch in _ranked(store, "turns")} == {
        name for name in names if name.startswith("routes:")
    }
    routes = {
        f"line:{batch}:{route}"
        for batch in _ranked(store, "turns")
        for route in _ranked(store, f"routes:{batch}")
    }
    assert routes == lines
    for name in lines:
        _, batch, route = name.split(":")
        assert _ranked(store, f"routes:{batch}")[route] == next(iter(_ranked(store, name).values()))


def _ranked(store: Store, name: str) -> dict[str, float]:
    """Return a sorted set of the queue, lowest first."""
    flat = store.script(
        "return redis.call('ZRANGE', ARGV[1], 0, -1, 'WITHSCORES')", [f"sojourn:queue:{name}"]
    )
    return {member: float(score) for member, score in zip(flat[::2], flat[1::2], strict=True)}


def taken_by(queue: AllowingQueue, allowed: Limits = WIDE, holder: str = "one") -> Taken:
    """Take a migration; there must be one."""
    taken = queue.take(holder, allowed)
    assert taken
    return taken


def soon_taken_by(queue: AllowingQueue) -> Taken:
    """Take a migration as soon as it is due, or its lease has expired."""
    found = eventually(lambda: queue.take("one", WIDE))
    assert found
    return found


def drained(queue: AllowingQueue, allowed: Limits = WIDE) -> list[Entry]:
    """Take until nothing is handed out."""
    found = iter(lambda: queue.take("one", allowed), None)
    return [taken.entry for taken in found]


def test_what_was_put_is_taken_once(queue: AllowingQueue) -> None:
    """It comes back as it was put, once; when it has ended, nothing of it is left."""
    asked = entry("nightly", 7, tcp_established=True)
    assert queue.put([asked]) == 1
    assert queue.standing(asked.id) is Standing.WAITING
    assert queue.take("worker 1", WIDE) == Taken(asked, 1)
    assert queue.take("worker 2", WIDE) is None
    assert queue.standing(asked.id) is Standing.TAKEN
    assert queue.counts() == Counts(0, 0, 1, 0)
    assert queue.end(asked.id)
    assert not queue.end(asked.id)
    assert queue.standing(asked.id) is None
    assert queue.counts() == Counts(0, 0, 0, 0)


def test_an_end_before_its_turn(queue: AllowingQueue) -> None:
    """What has ended is forgotten, whatever its state, and its place in the line closes."""
    first, second, late = entry(), entry(), replace(entry(), delay_s=60)
    queue.put([first, second, late])
    assert queue.end(first.id)
    assert queue.end(late.id)
    assert drained(queue) == [second]


def test_putting_again_changes_nothing(queue: AllowingQueue) -> None:
    """After a broken connection, a batch can be put again."""
    first, second = entry(), entry()
    queue.put([first])
    assert queue.put([replace(first, priority=9), second]) == 1
    taken = taken_by(queue)
    assert taken.entry == first
    assert queue.put([first]) == 0
    assert drained(queue) == [second]
    assert queue.put([]) == 0


BAD: list[tuple[Json, str]] = [
    ({"id": "x:y"}, "not the id of a migration"),
    ({"batch": "a:b"}, "not the id of a batch"),
    ({"batch": ""}, "not the id of a batch"),
    ({"priority": 1001}, "A priority is a whole number from -1000 to 1000, not 1001"),
    ({"priority": True}, "A priority is"),
    ({"plan": {"pid": 1, "source": "alpha", "destination": "beta"}}, "PID 1"),
    ({"plan": {"pid": 7, "source": "alpha", "destination": "b>c"}}, "not a name of a host"),
]


@pytest.mark.parametrize(
    ("change", "message"), BAD, ids=lambda value: value if isinstance(value, str) else ""
)
def test_what_cannot_be_queued(queue: AllowingQueue, change: Json, message: str) -> None:
    """A malformed entry keeps all of them out."""
    with pytest.raises(UsageError, match=message):
        queue.put([entry(), replace(entry(), **change)])
    assert queue.counts() == Counts(0, 0, 0, 0)


def test_what_another_version_queued(store: Store, queue: AllowingQueue) -> None:
    """An unknown option is handed out as it is: whoever takes it reports what is wrong."""
    asked = entry()
    queue.put([asked])
    plan = Sealed(store).text(ENTRY, asked.id, {**asked.plan, "colour": "blue"})
    store.put_fields(f"sojourn:queue:entry:{asked.id}", {"plan": plan})
    assert taken_by(queue).entry.plan["colour"] == "blue"


def test_by_priority_then_first_come(queue: AllowingQueue) -> None:
    """Within a batch, across its routes; negative priorities go last."""
    ranks = [0, -1000, 5, 0, 1000, 5]
    asked = [
        entry(priority=rank, destination=HOSTS[1 + number % 3]) for number, rank in enumerate(ranks)
    ]
    queue.put(asked)
    assert drained(queue) == [asked[index] for index in (4, 2, 5, 0, 3, 1)]


def test_a_priority_that_is_changed(queue: AllowingQueue) -> None:
    """It moves an entry that waits, now or for a time, and none that is under way or unknown."""
    first, second, third = asked = many(3, "batch")
    late = replace(entry(), delay_s=0.05)
    queue.put([*asked, late])
    assert queue.reprioritise(third.id, 1)
    assert queue.reprioritise(first.id, -1)
    assert queue.reprioritise(late.id, -2)
    waiting = [row.id for row in queue.waiting(WIDE)]
    assert waiting == [third.id, second.id, first.id, late.id]
    assert taken_by(queue).entry == replace(third, priority=1)
    assert not queue.reprioritise(third.id, 2)
    assert not queue.reprioritise("unknown-0", 2)
    with pytest.raises(UsageError):
        queue.reprioritise(first.id, 10**6)
    eventually(lambda: queue.take("nobody", NOTHING) is None and queue.counts().later == 0)
    assert [taken.id for taken in drained(queue)] == [second.id, first.id, late.id]


def test_a_batch_of_1000_and_one_of_3(queue: AllowingQueue) -> None:
    """The small one does not wait for the large one: they take turns, and later ones join in."""
    queue.put(many(1000, "large"))
    started = [taken_by(queue) for _ in range(10)]
    queue.put(many(3, "small"))
    assert [taken_by(queue).entry.batch for _ in range(8)] == ["large", "small"] * 3 + ["large"] * 2
    queue.put([*many(2, "b"), *many(2, "c")])
    assert [taken_by(queue).entry.batch for _ in range(7)] == [
        "large",
        "b",
        "c",
        "large",
        "b",
        "c",
        "large",
    ]
    assert {taken.entry.batch for taken in started} == {"large"}


def test_new_batches_do_not_push_in(queue: AllowingQueue) -> None:
    """However many small batches come, a large one has its turn in every round."""
    queue.put(many(10, "large"))
    taken = []
    for number in range(10):
        queue.put([entry(f"small-{number}-{part}") for part in range(2)])
        taken += [taken_by(queue).entry.batch for _ in range(2)]
    assert taken.count("large") >= 5


def test_a_high_priority_is_one_of_its_batch(queue: AllowingQueue) -> None:
    """It does not push other batches aside."""
    queue.put([*many(2, "a"), *(replace(urgent, priority=1000) for urgent in many(2, "b"))])
    assert [taken.batch for taken in drained(queue)] == ["a", "b", "a", "b"]


@pytest.mark.parametrize(
    ("allowed", "count", "why"),
    [
        (limits(alpha=(2, 9)), 2, "2 of 2 leave alpha already"),
        (limits(beta=(9, 3)), 3, "3 of 3 come to beta already"),
        (limits(cluster=4), 4, "4 of 4 are under way in the cluster already"),
        (limits(cluster=0), 0, "0 of 0 are under way in the cluster already"),
        (limits(alpha=(0, 9)), 0, "0 of 0 leave alpha already"),
        (Limits(9, {"beta": 9}, {"beta": 9}), 0, "alpha does not answer"),
        (Limits(9, {"alpha": 9}, {"alpha": 9}), 0, "beta does not answer or is cordoned"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_limits(queue: AllowingQueue, allowed: Limits, count: int, why: str) -> None:
    """No more are handed out than allowed; an end makes room for one; the rest have the reason."""
    queue.put(many(6, "batch"))
    taken = list(iter(lambda: queue.take("one", allowed), None))
    assert len(taken) == count
    assert [row.why for row in queue.waiting(allowed)] == [why] * (6 - count)
    if taken:
        queue.end(taken[0].entry.id)
        assert taken_by(queue, allowed)
        assert queue.take("one", allowed) is None


def test_a_full_host_holds_up_no_others(queue: AllowingQueue) -> None:
    """Behind 500 of a batch that wait for a full host, those between other hosts go."""
    queue.put(
        [
            *many(500, "a"),
            *many(500, "b"),
            entry("a", -9, "gamma", "delta"),
            entry("b", -9, "delta", "gamma"),
        ]
    )
    allowed = limits(alpha=(1, 1))
    assert [(taken.batch, taken.plan["source"]) for taken in drained(queue, allowed)] == [
        ("a", "alpha"),
        ("b", "delta"),
        ("a", "gamma"),
    ]


def test_the_search_is_bounded_and_reaches_everything(queue: AllowingQueue) -> None:
    """Calls that examine ten routes each reach the last of many batches after some calls."""
    queue.put([entry(f"blocked-{number}") for number in range(45)])
    last = entry("last", 0, "gamma", "delta")
    queue.put([last])
    allowed = limits(alpha=(0, 9))
    calls = [queue.take("one", allowed, look=10) for _ in range(6)]
    assert [number for number, taken in enumerate(calls) if taken] == [4]
    assert [taken.batch for taken in drained(queue)] == [
        f"blocked-{number % 45}" for number in range(5, 50)
    ]


def test_one_call_searches_many_routes_of_many_batches(queue: AllowingQueue) -> None:
    """It finds the only entry for which there is room, wherever that is."""
    hosts = [f"host-{number}" for number in range(20)]
    pairs = [(one, other) for one in hosts for other in hosts if one != other]
    queue.put([entry(f"batch-{number % 20}", 0, *pair) for number, pair in enumerate(pairs)])
    for source, destination in (pairs[0], pairs[187], pairs[-1]):
        allowed = Limits(1000, {source: 1000, destination: 0}, {source: 0, destination: 1000})
        taken = taken_by(queue, allowed)
        assert (taken.entry.plan["source"], taken.entry.plan["destination"]) == (
            source,
            destination,
        )


def test_what_hosts_announce_counts_at_once(store: Store) -> None:
    """As many are handed out as both hosts allow, and none once one is cordoned or gone."""
    queue, registry = Queue(store, 30), Registry(store)
    alpha = HostInfo("alpha", "", "", "", "", "", 1, 1, 1, 0, 0.0, max_outgoing=3, max_incoming=0)
    beta = replace(alpha, name="beta", max_outgoing=0, max_incoming=1)
    queue.put(many(4, "batch"))
    registry.announce(alpha, 20)
    assert queue.take("one", 9) is None
    registry.announce(beta, 20)
    assert [bool(queue.take("one", 9)) for _ in range(2)] == [True, False]
    registry.announce(replace(beta, max_incoming=9), 20)
    registry.cordon("beta")
    assert queue.take("one", 9) is None
    registry.uncordon("beta")
    assert queue.take("one", 9)
    registry.withdraw("alpha")
    assert queue.take("one", 9) is None
    registry.announce(alpha, 20)
    assert [bool(queue.take("one", 9)) for _ in range(2)] == [True, False]


def test_the_limits_that_people_see() -> None:
    """Silent hosts have none, and cordoned ones none for what comes in."""
    alpha = HostInfo("alpha", "", "", "", "", "", 1, 1, 1, 0, 0.0, max_outgoing=3, max_incoming=5)
    beta = replace(alpha, name="beta", cordoned=True)
    found = Limits.of({"alpha": alpha, "beta": beta, "gamma": None}, 9)
    assert found == Limits(9, {"alpha": 3, "beta": 3}, {"alpha": 5})


def test_a_holder_that_falls_silent(store: Store) -> None:
    """Its places are freed and its migrations handed out again; what a host holds is not."""
    queue, allowed = AllowingQueue(store, 0.2), limits(cluster=2)
    queue.put(many(3, "batch"))
    lost, kept = taken_by(queue, allowed, "silent"), taken_by(queue, allowed, "loud")
    assert queue.take("third", allowed) is None

    def held_and_taken() -> Taken | None:
        assert queue.hold([kept.entry.id], "alpha") == 1
        return queue.take("third", allowed)

    assert eventually(held_and_taken) == Taken(lost.entry, 2)
    assert queue.counts() == Counts(1, 0, 2, 0)
    _check_sound(store)


def test_an_end_after_the_lease(store: Store) -> None:
    """The end of a migration counts, whether its lease was found expired meanwhile or not."""
    queue = AllowingQueue(store, 0.05)
    queue.put(many(2, "batch"))
    first, second = taken_by(queue), taken_by(queue)
    eventually(lambda: not _holding(store, "out"))
    assert queue.end(first.entry.id)
    assert queue.take("nobody", NOTHING) is None  # requeues the other
    assert queue.counts() == Counts(1, 0, 0, 0)
    assert queue.end(second.entry.id)
    assert queue.counts() == Counts(0, 0, 0, 0)
    _check_sound(store)


def test_what_a_journal_knows_is_held(store: Store) -> None:
    """Whoever took it, even if its lease has expired; what never began, or is unknown, is not."""
    brief, queue = AllowingQueue(store, 0.05), AllowingQueue(store, 30)
    expired, requeued, waits = entries = many(3, "batch")
    queue.put(entries)
    assert [taken_by(brief).entry for _ in range(2)] == [expired, requeued]
    eventually(lambda: not _holding(store, "out"))
    assert queue.hold([expired.id], "alpha") == 1
    assert queue.take("nobody", NOTHING) is None  # requeues what nobody holds
    assert queue.standing(requeued.id) is Standing.WAITING
    assert queue.hold([requeued.id, waits.id, "unknown-0"], "beta") == 1
    assert _holding(store, "in") == {expired.id, requeued.id}
    assert [row.tries for row in queue.waiting(WIDE)] == [0]
    assert drained(queue) == [waits]
    _check_sound(store)


def test_the_places_of_hosts_expire_by_themselves(store: Store) -> None:
    """Without any call, only the entry and its place in the cluster remain of an expired lease."""
    queue = AllowingQueue(store, 0.1)
    queue.put(many(1, "batch"))
    taken_by(queue)
    keys = ["sojourn:queue:out:alpha", "sojourn:queue:in:beta"]
    assert all(_ranked(store, key.removeprefix("sojourn:queue:")) for key in keys)
    eventually(lambda: store.script("return redis.call('EXISTS', unpack(ARGV))", keys) == 0)


def test_longer_and_shorter_leases_of_one_host(store: Store) -> None:
    """A short lease does not end the places that are held for longer."""
    patient, hasty = AllowingQueue(store, 30), AllowingQueue(store, 0.05)
    patient.put(many(3, "batch"))
    taken_by(patient)
    taken_by(hasty)
    time.sleep(0.1)  # longer than the short lease
    assert len(_ranked(store, "out:alpha")) >= 1
    assert hasty.take("one", limits(alpha=(1, 1))) is None


def test_back_off() -> None:
    """Five seconds, then ten."""
    assert [back_off_s(tries) for tries in (1, 2, 3)] == [5, 10, 20]


def test_three_tries(store: Store) -> None:
    """A migration that takes every holder down is given up, and holds up no other meanwhile."""
    queue = AllowingQueue(store, 0.03)
    doomed, other = entry(priority=5), entry()
    queue.put([doomed, other])
    found = []

    def given_up() -> list[GivenUp]:
        found.append(queue.take("doomed", WIDE))
        if queue.standing(other.id) is Standing.TAKEN:
            queue.end(other.id)
        return queue.given_up()

    assert eventually(given_up) == [GivenUp(doomed, MAX_TRIES, "doomed fell silent")]
    assert [taken.tries for taken in found if taken and taken.entry == doomed] == [1, 2, 3]
    assert [taken.tries for taken in found if taken and taken.entry == other] == [1]
    assert queue.counts() == Counts(0, 0, 0, 1)
    assert queue.take("one", WIDE) is None
    assert queue.remove(doomed.id)
    assert queue.given_up() == []
    _check_sound(store)


REST = {"gamma": 9, "delta": 9}
WITHOUT_ALPHA = Limits(9, {"beta": 9, **REST}, {"beta": 9, **REST})
WITHOUT_BETA = Limits(9, {"alpha": 9, **REST}, {"alpha": 9, **REST})
CORDONED_BETA = Limits(9, {"alpha": 9, "beta": 9, **REST}, {"alpha": 9, **REST})
SHUT = [(WITHOUT_ALPHA, "out:alpha"), (WITHOUT_BETA, "in:beta"), (CORDONED_BETA, "in:beta")]
SHUT_IDS = ["silent source", "silent destination", "cordoned destination"]


def since(store: Store, key: str) -> float | None:
    """Return for how long a host is known to be silent or cordoned, None if it is not."""
    script = """local at = redis.call('GET', ARGV[1])
        return at and redis.call('TIME')[1] - at / 1000 .. ''"""
    seconds = store.script(script, [f"sojourn:queue:shut:{key}"])
    return None if seconds is None else float(seconds)


def age(store: Store, key: str, seconds: float) -> None:
    """Let a host be silent or cordoned for so long already."""
    script = """local key = 'sojourn:queue:shut:' .. ARGV[1]
        local earlier = redis.call('GET', key) - ARGV[2] * 1000
        return redis.call('SET', key, string.format('%.0f', earlier), 'KEEPTTL')"""
    store.script(script, [key, seconds])


@pytest.mark.parametrize(("allowed", "key"), SHUT, ids=SHUT_IDS)
def test_a_host_that_does_not_come_back(
    store: Store, queue: AllowingQueue, allowed: Limits, key: str
) -> None:
    """What waits for it is handed out all the same after SHUT_S; others go meanwhile."""
    asked, other = entry(), entry("other", 0, "gamma", "delta")
    queue.put([asked, other])
    assert drained(queue, allowed) == [other]
    assert queue.waiting(allowed)[0].why.startswith(
        ("alpha does not answer", "beta does not answer")
    )
    age(store, key, SHUT_S - 2)
    assert drained(queue, allowed) == []
    age(store, key, 3)
    assert drained(queue, allowed) == [asked]


@pytest.mark.parametrize(("allowed", "key"), SHUT, ids=SHUT_IDS)
def test_a_host_that_comes_back_in_time(
    store: Store, queue: AllowingQueue, allowed: Limits, key: str
) -> None:
    """What waits for it goes there; when it is silent again later, its time starts over."""
    first, second = many(2, "batch")
    queue.put([first])
    assert drained(queue, allowed) == []
    age(store, key, SHUT_S - 2)
    assert drained(queue) == [first]
    assert since(store, key) is None
    queue.put([second])
    assert drained(queue, allowed) == []
    assert since(store, key) == pytest.approx(0, abs=2)


def test_a_host_that_came_back_while_nothing_waited_for_it(
    store: Store, queue: AllowingQueue
) -> None:
    """Its silence is forgotten when nobody finds it silent again in time."""
    asked = entry()
    queue.put([asked])
    assert drained(queue, WITHOUT_BETA) == []
    left = "return redis.call('PTTL', 'sojourn:queue:shut:in:beta')"
    assert 59_000 < store.script(left) <= 60_000
    store.script("return redis.call('PEXPIRE', 'sojourn:queue:shut:in:beta', 5000)")
    assert drained(queue, WITHOUT_BETA) == []
    assert 59_000 < store.script(left) <= 60_000
    assert AllowingQueue(store, 100).take("one", WITHOUT_BETA) is None
    assert 199_000 < store.script(left) <= 200_000


def test_not_before_a_time(queue: AllowingQueue) -> None:
    """An entry can be put for later; it is listed meanwhile and can be removed."""
    soon, late = replace(entry(), delay_s=0.1), replace(entry(), delay_s=60)
    queue.put([soon, late])
    assert queue.take("one", WIDE) is None
    assert [row.why for row in queue.waiting(WIDE)][1] == "not before 60 s from now"
    assert soon_taken_by(queue).entry.id == soon.id
    assert queue.counts() == Counts(0, 1, 1, 0)
    assert queue.remove(late.id)


def test_removed(queue: AllowingQueue) -> None:
    """Only what is not under way can be removed, once; its place in the line closes."""
    first, second, third = asked = many(3, "batch")
    queue.put(asked)
    taken = taken_by(queue)
    assert taken.entry == first
    assert not queue.remove(first.id)
    assert queue.remove(second.id)
    assert not queue.remove(second.id)
    assert not queue.remove("unknown-0")
    assert drained(queue) == [third]


def test_the_order_that_people_see_is_the_order_of_handing_out(queue: AllowingQueue) -> None:
    """Across batches, routes and priorities, as far as the list goes."""
    for number in range(60):
        queue.put(
            [
                entry(
                    f"b{number % 4}",
                    number % 7,
                    *(("alpha", "beta"), ("beta", "gamma"))[number % 2],
                )
            ]
        )
    for _ in range(5):
        taken_by(queue)
    rows = queue.waiting(WIDE, 20)
    assert [row.position for row in rows] == list(range(1, 21))
    assert {row.why for row in rows} == {"its turn comes"}
    assert [row.id for row in rows] == [taken_by(queue).entry.id for _ in range(20)]


def test_a_call_that_is_sent_twice(store: Store, queue: AllowingQueue) -> None:
    """If the answer is lost the client repeats the call: it gets the same entry, not another."""
    queue.put(many(2, "batch"))
    allow(store, WIDE)
    first, second = (
        store.script(SCRIPTS["take"], ["ticket", "one", 30_000, 9, 9]) for _ in range(2)
    )
    assert first == second
    assert queue.counts() == Counts(1, 0, 1, 0)


#: Let the lease of a migration expire, as time would.
EXPIRE = """
for _, key in ipairs({'taken', 'out:' .. ARGV[2], 'in:' .. ARGV[3]}) do
  redis.call('ZADD', 'sojourn:queue:' .. key, 'XX', 1, ARGV[1])
end
"""


class Expectation:
    """What must be in the queue after any sequence of operations."""

    def __init__(self, store: Store, queue: AllowingQueue, chance: random.Random) -> None:
        self.store, self.queue, self.chance = store, queue, chance
        self.inside: set[str] = set()
        self.taken: dict[str, Taken] = {}
        self.requeued: dict[str, Taken] = {}  # what waits again, since its lease expired
        self.given_up: set[str] = set()

    def act(self) -> None:
        """Perform one operation, and expect its result."""
        operations = [
            self.put,
            self.take,
            self.take,
            self.end,
            self.expire,
            self.hold,
            self.remove,
            self.reprioritise,
        ]
        self.chance.choice(operations)()

    def put(self) -> None:
        """Queue one, between any two hosts, perhaps for later."""
        hosts = self.chance.sample(HOSTS, 2)
        asked = entry(f"batch-{self.chance.randrange(4)}", self.chance.randrange(-2, 3), *hosts)
        assert self.queue.put([replace(asked, delay_s=self.chance.choice([0, 0, 3600]))]) == 1
        self.inside.add(asked.id)

    def take(self) -> None:
        """Take one, if there is room for one."""
        taken = self.queue.take("one", TIGHT)
        if taken:
            before = self.requeued.pop(taken.entry.id, None)
            assert taken.entry.id in self.inside - set(self.taken) - self.given_up
            assert taken.tries == (before.tries + 1 if before else 1)
            self.taken[taken.entry.id] = taken

    def end(self) -> None:
        """End any one."""
        for name in self.chance.sample(sorted(self.inside), min(1, len(self.inside))):
            assert self.queue.end(name)
            self.inside.remove(name)
            self.given_up.discard(name)
            self.taken.pop(name, None)
            self.requeued.pop(name, None)

    def expire(self) -> None:
        """Let the lease of a taken one expire; with the third it is given up."""
        for name, taken in list(self.taken.items())[-1:]:
            self.store.script(
                EXPIRE, [name, taken.entry.plan["source"], taken.entry.plan["destination"]]
            )
            assert self.queue.take("nobody", NOTHING) is None
            del self.taken[name]
            if taken.tries == MAX_TRIES:
                self.given_up.add(name)
            else:
                self.requeued[name] = taken

    def hold(self) -> None:
        """Hold one that was taken, even if its lease expired since; or one that never was."""
        never = self.inside - self.taken.keys() - self.requeued.keys() - self.given_up
        assert self.queue.hold(sorted(never), "alpha") == 0
        for name, taken in list((self.taken | self.requeued).items())[:1]:
            assert self.queue.hold([name], "alpha") == 1
            self.requeued.pop(name, None)
            self.taken[name] = taken

    def remove(self) -> None:
        """Remove any one."""
        for name in self.chance.sample(sorted(self.inside), min(1, len(self.inside))):
            assert self.queue.remove(name) == (name not in self.taken)
            self.inside -= {name} - set(self.taken)
            self.given_up &= self.inside
            self.requeued = {
                name: taken for name, taken in self.requeued.items() if name in self.inside
            }

    def reprioritise(self) -> None:
        """Give any one another priority."""
        for name in self.chance.sample(sorted(self.inside), min(1, len(self.inside))):
            moved = self.queue.reprioritise(name, self.chance.randrange(-2, 3))
            assert moved == (name not in self.taken and name not in self.given_up)


def _holding(store: Store, direction: str) -> set[str]:
    """Return the ids of all that hold a place of a host."""
    return {migration for host in HOSTS for migration in _ranked(store, f"{direction}:{host}")}


@pytest.mark.parametrize("seed", range(4))
def test_any_operations_in_any_order(store: Store, queue: AllowingQueue, seed: int) -> None:
    """After every one of many operations the queue is sound, and holds what it must."""
    expected = Expectation(store, queue, random.Random(seed))
    for _ in range(120):
        expected.act()
        _check_sound(store)
        assert _holding(store, "out") == _holding(store, "in") == set(expected.taken)
        counts = queue.counts()
        assert (counts.taken, counts.given_up) == (len(expected.taken), len(expected.given_up))
        assert (
            counts.waiting + counts.later == len(expected.inside) - counts.taken - counts.given_up
        )
    waiting = {row.id for row in queue.waiting(TIGHT, 1000)}
    assert waiting == expected.inside - set(expected.taken) - expected.given_up


TIGHT = limits(3, cluster=5, beta=(1, 2))

#: Counts what is under way independently of the queue, and records which limits were exceeded.
BEGIN = """
for i = 2, #ARGV, 2 do
  local under_way = redis.call('INCR', 'test:' .. ARGV[i])
  if under_way > tonumber(ARGV[i + 1]) then redis.call('SADD', 'test:exceeded', ARGV[i]) end
end
return redis.call('HINCRBY', 'test:handed out', ARGV[1], 1)
"""
END = "for i = 2, #ARGV, 2 do redis.call('DECR', 'test:' .. ARGV[i]) end"


#: How many processes take concurrently; they begin when all have started.
PROCESSES = 4


def work(url: str, holder: str) -> int:
    """Take and end until nothing is left; return how many were ended.

    The first lease of one in seven expires.
    """
    store, finished = Store(url), 0
    queue = AllowingQueue(store, 30)
    store.script("return redis.call('INCR', 'test:there')")
    eventually(
        lambda: int(store.script("return redis.call('GET', 'test:there')")) == PROCESSES,
        within_s=60,
    )
    while store.members("sojourn:queue:ids"):
        taken = queue.take(holder, TIGHT)
        if not taken:
            time.sleep(0.005)
        else:
            out, into = taken.entry.plan["source"], taken.entry.plan["destination"]
            marks: list[str | int] = [
                f"out:{out}",
                TIGHT.outgoing[out],
                f"in:{into}",
                TIGHT.incoming[into],
                "all",
                TIGHT.cluster,
            ]
            store.script(BEGIN, [taken.entry.id, *marks])
            falls_silent = taken.tries == 1 and int(taken.entry.id[:8], 16) % 7 == 0
            store.script(END, [taken.entry.id, *marks])
            if falls_silent:
                store.script(EXPIRE, [taken.entry.id, out, into])
            else:
                finished += queue.end(taken.entry.id)
    return finished


def test_several_processes_at_once(redis: Redis, store: Store, queue: AllowingQueue) -> None:
    """No limit is exceeded, only what expired is handed out twice, and nothing is lost."""
    asked = [
        entry(
            f"batch-{number % 5}",
            number % 3,
            HOSTS[number % 4],
            HOSTS[(number + 1 + number % 3) % 4],
        )
        for number in range(150)
    ]
    asked = [queued for queued in asked if queued.plan["source"] != queued.plan["destination"]]
    queue.put(asked)
    with ProcessPoolExecutor(PROCESSES, mp_context=multiprocessing.get_context("spawn")) as pool:
        finished = list(
            pool.map(
                work, [redis.url] * PROCESSES, [f"worker-{number}" for number in range(PROCESSES)]
            )
        )
    assert sum(finished) == len(asked)
    assert sum(count > 0 for count in finished) > 1
    tries = {queued.id: 1 + (int(queued.id[:8], 16) % 7 == 0) for queued in asked}
    assert {name: int(count) for name, count in store.fields("test:handed out").items()} == tries
    assert store.members("test:exceeded") == set()
    assert queue.counts() == Counts(0, 0, 0, 0)


def crash(url: str) -> None:
    """Take two and exit without a report."""
    queue = AllowingQueue(Store(url), 0.3)
    assert queue.take("crashing", WIDE)
    assert queue.take("crashing", WIDE)


def test_a_holder_that_crashes(redis: Redis, store: Store) -> None:
    """What a dead process held is handed out to others after its lease, and only then."""
    queue = AllowingQueue(store, 30)
    asked = many(3, "batch")
    queue.put(asked)
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        pool.submit(crash, redis.url).result()
    began = time.monotonic()
    tries = Counter(soon_taken_by(queue).tries for _ in asked)
    assert time.monotonic() - began < 5
    assert tries == {2: 2, 1: 1}
    _check_sound(store)


def cost_us(queue: AllowingQueue, allowed: Limits) -> float:
    """Return the median time to take one and end it, in microseconds."""
    costs = []
    allow(queue._store, allowed)
    for _ in range(200):
        began = time.perf_counter()
        taken = Queue.take(queue, "one", allowed.cluster)
        assert taken
        queue.end(taken.entry.id)
        costs.append((time.perf_counter() - began) * 1e6)
        queue.put([taken.entry])
    return sorted(costs)[len(costs) // 2]


def test_the_cost_does_not_grow(queue: AllowingQueue, capsys: pytest.CaptureFixture[str]) -> None:
    """It takes about as long with ten thousand as with ten, even past full hosts."""
    queue.put(many(10, "few", "gamma", "delta"))
    few = cost_us(queue, WIDE)
    began = time.perf_counter()
    queue.put([entry(f"batch-{number % 50}", number % 9) for number in range(10_000)])
    put = (time.perf_counter() - began) * 1e6 / 10_000
    lot = cost_us(queue, WIDE)
    blocked = cost_us(queue, limits(alpha=(0, 9)))
    began = time.perf_counter()
    queue.waiting(WIDE, 100)
    listed = (time.perf_counter() - began) * 1e3
    with capsys.disabled():
        sys.stdout.write(
            f"\ntake and end: {few:.0f} us with 10 queued, {lot:.0f} us with 10,010, "
            f"{blocked:.0f} us past a full host; put: {put:.0f} us per entry; "
            f"listing the first 100: {listed:.0f} ms\n"
        )
    assert lot < 5 * few
    assert blocked < 10 * few
