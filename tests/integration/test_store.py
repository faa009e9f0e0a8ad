"""The door to Redis, against a real one."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from redis.connection import AbstractConnection

from sojourn.cluster.store import Store
from sojourn.errors import StoreUnreachable
from tests.conftest import eventually
from tests.integration.conftest import Redis


@pytest.fixture
def store(redis: Redis) -> Store:
    """Give out a connection."""
    return Store(redis.url)


def test_hashes(store: Store) -> None:
    """Fields are added to those that exist; a hash that does not exist is read as empty."""
    store.put_fields("test:hash", {"a": "1", "b": "2"})
    store.put_fields("test:hash", {"b": "ü", "c": ""})
    assert store.fields("test:hash") == {"a": "1", "b": "ü", "c": ""}
    assert store.fields("test:none") == {}


def test_a_hash_expires(store: Store) -> None:
    """A hash expires as a whole."""
    store.put_fields("test:short", {"a": "1"}, expire_s=1)
    assert store.fields("test:short") == {"a": "1"}
    eventually(lambda: not store.fields("test:short"), within_s=3)


def test_values(store: Store) -> None:
    """Values come back in the order of the keys; one that does not exist, or expired, is None."""
    store.put("test:a", "1", expire_s=60)
    store.put("test:b", "2", expire_s=0.05)
    eventually(lambda: store.values(["test:b", "test:none", "test:a"]) == [None, None, "1"])
    assert store.values([]) == []


def test_sets(store: Store) -> None:
    """Adding and removing members is idempotent; in a sorted set the first score stays."""
    store.add_to_set("test:set", "x")
    store.add_to_set("test:set", "x")
    assert store.members("test:set") == {"x"}
    store.remove_from_set("test:set", "y")
    store.remove_from_set("test:set", "x")
    assert store.members("test:set") == set()
    for name, score in (("a", 1.0), ("b", 3.0), ("c", 2.0), ("a", 9.0)):
        store.rank("test:ranks", name, score)
    assert store.highest("test:ranks", 2) == ["b", "c"]
    assert store.ranked_from("test:ranks", 2.0) == ["c", "b"]


def test_scripts(store: Store) -> None:
    """A script gets its arguments as text and answers with integers, texts and lists."""
    assert store.script(
        "return {ARGV[1], ARGV[2] + 1, redis.call('INCR', 'test:count')}", ["a", 2]
    ) == ["a", 3, 1]
    assert store.script("return false") is None
    with pytest.raises(StoreUnreachable, match="no such thing"):
        store.script("return redis.error_reply('no such thing')")


def test_streams(store: Store) -> None:
    """Entries are read behind a position; an empty stream has one too, and waiting has an end."""
    assert store.last_id("test:stream") == "0-0"
    store.write([["XADD", "test:stream", "*", "n", "1"]])
    position = store.last_id("test:stream")
    store.write([["XADD", "test:stream", "*", "n", "2"]])
    ((name, fields),) = store.read("test:stream", position, wait_s=0.1)
    assert fields == {"n": "2"}
    began = time.monotonic()
    assert store.read("test:stream", name, wait_s=0.1) == []
    assert time.monotonic() - began < 1
    entries = store.read("test:stream", "0-0", wait_s=0.1)
    assert [fields["n"] for _, fields in entries] == ["1", "2"]


def test_a_write_that_is_refused(store: Store) -> None:
    """The other commands of a write are done, and none of their answers is read by the next one."""
    store.put_fields("test:hash", {"a": "1"})
    refused = ["LPUSH", "test:hash", "1"]
    with pytest.raises(StoreUnreachable, match="WRONGTYPE"):
        store.write([refused, ["SET", "test:a", "1"], ["SET", "test:b", "2"]])
    assert store.values(["test:a", "test:b"]) == ["1", "2"]


def test_an_alarm_during_a_command(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer that was not waited for is not taken for that of the next command."""
    store.put("test:a", "1", expire_s=60)
    with monkeypatch.context() as patch:
        patch.setattr(AbstractConnection, "read_response", _interrupted)
        with pytest.raises(KeyboardInterrupt):
            store.fields("test:none")
    assert store.values(["test:a"]) == ["1"]


def _interrupted(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_a_child_has_a_connection_of_its_own(store: Store) -> None:
    """After a fork nobody reads the answers of another process, and both go on."""
    store.script("redis.call('MSET', 'test:parent', '1', 'test:child', '2')")
    child = os.fork()
    if not child:
        right = all(store.values(["test:child"]) == ["2"] for _ in range(200))
        os._exit(0 if right else 1)
    assert all(store.values(["test:parent"]) == ["1"] for _ in range(200))
    assert os.waitpid(child, 0)[1] == 0


@pytest.fixture
def stopped(redis_there: None, tmp_path: Path) -> Iterator[Store]:
    """Give out a connection to a Redis that answered and was killed."""
    server = Redis(tmp_path)
    server.start()
    store = Store(server.url)
    store.ping()
    server.stop()
    yield store
    server.start()
    eventually(lambda: _answers(store))
    server.stop()


def _answers(store: Store) -> bool:
    store.ping()
    return True


ASKING: list[Callable[[Store], object]] = [
    Store.ping,
    lambda store: store.fields("x"),
    lambda store: store.put_fields("x", {"a": "1"}, expire_s=5),
    lambda store: store.read("x", "0-0", wait_s=1),
    lambda store: store.values(["x"]),
    lambda store: store.script("return 1"),
]


def test_a_redis_that_was_killed(stopped: Store) -> None:
    """Every operation raises StoreUnreachable, and soon; when Redis is back, so is the store."""
    for ask in ASKING:
        began = time.monotonic()
        with pytest.raises(StoreUnreachable, match=r"Redis at 127\.0\.0\.1:\d+/0 does not answer"):
            ask(stopped)
        assert time.monotonic() - began < 1


def test_a_password_is_not_disclosed() -> None:
    """The address in the message is without the password."""
    with pytest.raises(StoreUnreachable) as caught:
        Store("redis://:very-secret@127.0.0.1:1/0").ping()
    assert "very-secret" not in caught.value.message
