"""One odd record in Redis harms one row: everything else is read, and everybody goes on."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator
from typing import Any, cast

import pytest
from redis import Redis as Client

from sojourn.cli import listing, lists
from sojourn.cli.listing import Form
from sojourn.cli.output import console
from sojourn.cluster import batches, client, counters, ledger, registry
from sojourn.cluster.metrics import ClusterCollector, exposition
from sojourn.cluster.queue import Entry, Queue
from sojourn.cluster.registry import Registry
from sojourn.cluster.store import Store
from sojourn.errors import StoreUnreachable
from sojourn.model import Plan, State
from sojourn.settings import Settings
from tests.conftest import eventually
from tests.integration.conftest import Cluster, Redis
from tests.integration.steps import zeroth
from tests.integration.test_registry import ALPHA, BETA
from web.feed import Feed

PLAN = Plan(4242, "alpha", "beta")

KEY = "a key that only hosts have"

#: How many fake hosts, batches and migrations, and how long a command may take to read past them.
FAKES, FAKES_S = 300_000, 20

#: What may stand in the place of any text.
ODD: dict[str, bytes] = {
    "empty": b"",
    "not_json": b"{",
    "not_utf8": b"\xff\xfe\x00",
    "null": b"null",
    "number": b"7",
    "list": b"[]",
    "mapping": b"{}",
    "unknown": b'"of another version"',
    "deep": b"[" * 100_000,
    "digits": b"9" * 5000,
    "huge": b"1e999",
    "not_a_number": b"NaN",
    "endless": b'{"state": "completed", "total_ms": 1e999}',
    "surrogate": b'"\\ud800"',
}


@pytest.fixture
def raw(redis: Redis) -> Client:
    """Return a client that writes anything, to a Redis with nothing in it."""
    made = Client.from_url(redis.url)
    made.flushall()
    return made


@pytest.fixture(params=["", KEY], ids=["without a key", "with the key"])
def site(redis: Redis, raw: Client, request: pytest.FixtureRequest) -> client.Cluster:
    """Return a cluster with two hosts, a migration that is open, one that has ended, a batch.

    Whoever has the key opens seals; whoever has none reads what is there.
    """
    made = client.Cluster(Settings(redis_url=redis.url, key=request.param))
    for info in (ALPHA, BETA):
        made.registry.announce(info, 1000)
    made.ledger.open_all([(_id(number), PLAN, None) for number in range(2)])
    made.batches.plan("good", "plan", {"lines": 1}, "me")
    made.batches.open("good", [batches.Part(1, PLAN.to_json(), _id(0))], [])
    return made


def _id(number: int) -> str:
    return f"{number:08x}-0000-4000-8000-000000000000"


def _check(site: client.Cluster) -> None:
    """Check that the good rows are read by everybody who reads rows."""
    accounts = site.ledger.latest(1000)
    assert _id(1) in {account.id for account in accounts}
    json.dumps([account.to_json() for account in accounts], allow_nan=False)
    hosts = site.registry.hosts()
    assert hosts["alpha"] == ALPHA
    migrations = [lists._migration(account) for account in accounts]
    described = [lists._host(name, info) for name, info in hosts.items()]
    for columns, rows in ((lists.MIGRATIONS, migrations), (lists.HOSTS, described)):
        with console.capture():
            listing._table(columns, rows, all_of_them=False)
        for form in (None, *Form):
            listing.show(columns, rows, form)
    known = {record.id: record for record in site.batches.latest(20)}
    json.dumps(known["good"].to_json(site.batches.ends("good")), allow_nan=False)
    assert [part.number for part in site.batches.parts("good")] == [1]
    site.batches.promised()
    assert b'sojourn_host_up{host="alpha"} 1.0' in exposition(ClusterCollector(site))
    assert _id(1) in {row["id"] for row in _fed(site)}
    list(site.ledger.results(0))


def _fed(site: client.Cluster) -> list[dict[str, Any]]:
    """Return the rows that Flower's feed has read."""
    return Feed(site, _Loop())._changed(site.ledger.read("0-0")[0])


class _Loop:
    """Calls at once what Tornado's loop would call soon."""

    def add_callback(self, callback: Any, *args: object) -> None:
        callback(*args)


FIELDS = [
    *("plan", "state", "created", "owner", "failure", "result", "resolved", "part", "progress"),
    *("step:source:dump", "step:", "of another version"),
]


@pytest.mark.parametrize("odd", ODD)
def test_a_field_of_a_migration(site: client.Cluster, raw: Client, odd: str) -> None:
    """Whatever stands in the place of a field, the other migrations are read."""
    for field in FIELDS:
        raw.hset(ledger.key(_id(0)), field, ODD[odd])
        _check(site)


@pytest.mark.parametrize("odd", ODD)
def test_a_record_of_a_batch(site: client.Cluster, raw: Client, odd: str) -> None:
    """Whatever stands in the place of a batch's fields, parts and ends, others are read."""
    site.batches.plan("bad", "plan", {"lines": 1}, "me")
    for field in ("request", "aborted", "state", "total", "stays", "failure"):
        raw.hset("sojourn:batch:bad", field, ODD[odd])
        _check(site)
    raw.hset("sojourn:batch:good:parts", "2", ODD[odd])
    raw.hset("sojourn:batch:good:ends", "2", ODD[odd])
    raw.hset("sojourn:batch:good:ends", ODD[odd], b"{}")
    _check(site)


ENTRY = ("batch", "priority", "plan", "tries", "source", "destination", "state", "number")


@pytest.mark.parametrize("odd", [*ODD, "missing"])
@pytest.mark.parametrize("field", ENTRY)
def test_an_entry_of_the_queue(site: client.Cluster, raw: Client, field: str, odd: str) -> None:
    """Whatever stands in its place, it is handed out once at most, and those behind it are."""
    for number in range(2):
        site.queue.put([Entry(_id(number), _id(number), PLAN.to_json())])
    raw.hdel(f"sojourn:queue:entry:{_id(0)}", field)
    if odd in ODD:
        raw.hset(f"sojourn:queue:entry:{_id(0)}", field, ODD[odd])
    taken = [_taken(site.queue) for _ in range(4)]
    assert taken.count(_id(0)) <= 1
    assert taken.count(_id(1)) == 1


@pytest.mark.parametrize("odd", ["unknown", "missing"])
@pytest.mark.parametrize("field", ENTRY)
def test_an_entry_whose_lease_ends(redis: Redis, raw: Client, field: str, odd: str) -> None:
    """Whatever stands in its place meanwhile, others whose leases end are handed out again."""
    queue = Queue(Store(redis.url), lease_s=0.05)
    Registry(Store(redis.url)).announce(ALPHA, 1000)
    Registry(Store(redis.url)).announce(BETA, 1000)
    for number in range(2):
        queue.put([Entry(_id(number), _id(number), PLAN.to_json())])
    assert {_taken(queue), _taken(queue)} == {_id(0), _id(1)}
    raw.hdel(f"sojourn:queue:entry:{_id(0)}", field)
    if odd in ODD:
        raw.hset(f"sojourn:queue:entry:{_id(0)}", field, ODD[odd])
    time.sleep(0.1)
    assert _id(1) in [_taken(queue) for _ in range(4)]


@pytest.mark.parametrize("odd", [*ODD, "missing"])
@pytest.mark.parametrize("field", ENTRY)
def test_an_entry_that_is_under_way(
    site: client.Cluster, raw: Client, field: str, odd: str
) -> None:
    """Whatever stands in its place, the other keeps its places, and both can be forgotten."""
    names = [_id(0), _id(1)]
    site.queue.put([Entry(name, name, PLAN.to_json()) for name in names])
    assert {_taken(site.queue), _taken(site.queue)} == {*names}
    raw.hdel(f"sojourn:queue:entry:{_id(0)}", field)
    if odd in ODD:
        raw.hset(f"sojourn:queue:entry:{_id(0)}", field, ODD[odd])
    raw.zadd("sojourn:queue:taken", {_id(1): 1})
    assert site.queue.hold(names, "alpha") >= 1
    assert raw.zscore("sojourn:queue:taken", _id(1)) != 1
    for name in names:
        site.queue.end(name)
        assert site.queue.standing(name) is None


def _taken(queue: Queue) -> str | None:
    """Return what is handed out; None for nothing, or where a script cannot read an entry."""
    try:
        taken = queue.take("alpha", 100)
    except StoreUnreachable:
        return None
    return taken.entry.id if taken else None


@pytest.mark.parametrize("odd", ODD)
def test_what_a_host_announces(site: client.Cluster, raw: Client, odd: str) -> None:
    """Whatever stands in the place of an announcement, a host counts as silent, others do not."""
    raw.sadd(registry.KNOWN, "gamma", ODD[odd])
    raw.hset(registry.CORDONED, mapping={ODD[odd]: ODD[odd], "beta": ODD[odd]})
    raw.set("sojourn:host:gamma", ODD[odd])
    _check(site)
    assert site.registry.hosts()["gamma"] is None
    for name in ("pace", "window"):
        raw.set(f"sojourn:{name}:alpha:beta", ODD[odd])
    assert site.registry.pace("alpha", "beta") is None
    assert site.registry.window("alpha", "beta") is None


@pytest.mark.parametrize("odd", ODD)
def test_counts_events_and_open_ones(site: client.Cluster, raw: Client, odd: str) -> None:
    """Whatever is counted, happens or is open, the rest is."""
    raw.hset(counters.KEY, ODD[odd], ODD[odd])
    raw.hset(counters.KEY, '["migrations", "completed", "alpha", "beta", "x"]', ODD[odd])
    raw.hset(counters.KEY, '["freeze", "beta", "stop-and-copy", "soon"]', 1)
    raw.hset(ledger.OPEN, _id(0), ODD[odd])
    raw.xadd(ledger.EVENTS, {ODD[odd] or b"x": ODD[odd]})
    for kind in ("state", "step", "progress", "failure", "batch", "another"):
        raw.xadd(ledger.EVENTS, {"migration": _id(0), "kind": kind, "data": ODD[odd]})
    _check(site)


def test_an_announcement_in_the_name_of_another(site: client.Cluster, raw: Client) -> None:
    """It is none."""
    text = cast("bytes", raw.get("sojourn:host:alpha"))
    raw.sadd(registry.KNOWN, "gamma")
    raw.set("sojourn:host:gamma", text)
    assert site.registry.hosts()["gamma"] is None


def test_keys_of_another_type(site: client.Cluster, raw: Client) -> None:
    """Where a text or a list stands in the place of a hash, a set or a stream, nothing is read."""
    for key in (
        counters.KEY,
        ledger.OPEN,
        ledger.key(_id(0)),
        registry.CORDONED,
        "sojourn:batch:x",
    ):
        raw.delete(key)
        raw.set(key, "x")
        _check(site)
    raw.set("sojourn:batch:good:ends", "x")
    _check(site)


def test_fields_of_another_version(site: client.Cluster, raw: Client) -> None:
    """A migration with more options, and a step with more to report, are read without these."""
    plan = PLAN.to_json() | {"compression": "zstd"}
    step = {"name": "dump", "host": "alpha", "started": 1.0, "colour": "red"}
    raw.hset(ledger.key(_id(0)), "plan", json.dumps(plan))
    raw.hset(ledger.key(_id(0)), "step:source:dump", json.dumps(step))
    account = site.ledger.account(_id(0))
    assert account is not None
    assert (account.plan, account.steps[0].name) == (PLAN, "dump")


def test_crowds_of_fakes(site: client.Cluster, raw: Client) -> None:
    """Any number of hosts, batches and open migrations is read past, in seconds."""
    with raw.pipeline(transaction=False) as block:
        for start in range(0, FAKES, 10_000):
            names = range(start, start + 10_000)
            block.sadd(registry.KNOWN, *[f"fake{name}" for name in names])
            block.zadd(batches.INDEX, {f"fake{name}": 1 for name in names})
            block.hset(ledger.OPEN, mapping={f"fake{name}": State.RUNNING for name in names})
            block.hset(counters.KEY, mapping={f'["faults", "a", "{name}"]': 1 for name in names})
            block.zadd(ledger.INDEX, {f"fake{name}": 1 for name in names})
        block.execute()
    began = time.monotonic()
    assert len(site.registry.hosts()) <= registry.MOST_HOSTS
    site.registry.check(PLAN)
    assert site.registry.are_alive("alpha", "beta")
    exposition(ClusterCollector(site))
    assert "good" in {record.id for record in site.batches.latest(20)}
    assert _id(1) in {account.id for account in site.ledger.latest(20)}
    assert time.monotonic() - began < FAKES_S


@pytest.fixture
def reconciled(redis: Redis, tmp_path: Any) -> Iterator[Cluster]:
    """Start two hosts whose reconcilers look all the time."""
    made = Cluster(redis, tmp_path, reconcile=True, reconcile_s=0.2, stall_s=1)
    try:
        made.start()
        yield made
    finally:
        made.stop()


@pytest.mark.parametrize("how", ["deleted", "of another type", "unreadable"])
def test_a_single_record_is_written_again(reconciled: Cluster, how: str) -> None:
    """A hash that was evicted or overwritten is rebuilt from the journals, with all steps."""
    message = reconciled.message()
    reconciled.ledger.open(message.id, message.plan)
    for host in reconciled.hosts:
        reconciled.send(zeroth, message, host).get(timeout=20)
    raw, key = Client.from_url(reconciled.redis.url), ledger.key(message.id)
    raw.delete(key)
    if how == "of another type":
        raw.set(key, "x")
    if how == "unreadable":
        raw.hset(key, mapping={"plan": "x", "state": "x", str(uuid.uuid4()): b"\xff"})

    def steps() -> list[tuple[str, str]]:
        account = reconciled.ledger.account(message.id)
        return sorted((step.name, step.host) for step in account.steps) if account else []

    both = [("test_zeroth", "alpha"), ("test_zeroth", "beta")]
    eventually(lambda: steps() == both, within_s=20)
