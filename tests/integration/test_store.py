"""The door to Redis, against a real one."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sojourn.errors import StoreUnreachable
from sojourn.store import Store
from tests.conftest import eventually
from tests.integration.conftest import Redis


@pytest.fixture
def store(redis: Redis) -> Store:
    """Give out a connection."""
    return Store(redis.url)


def test_hashes(store: Store) -> None:
    """Fields are added to those that are there; no hash is an empty one."""
    store.put_fields("test:hash", {"a": "1", "b": "2"})
    store.put_fields("test:hash", {"b": "ü", "c": ""})
    assert store.fields("test:hash") == {"a": "1", "b": "ü", "c": ""}
    assert store.fields("test:none") == {}


def test_a_hash_expires(store: Store) -> None:
    """A hash vanishes as a whole when its time has come."""
    store.put_fields("test:short", {"a": "1"}, expire_s=1)
    assert store.fields("test:short") == {"a": "1"}
    eventually(lambda: not store.fields("test:short"), within_s=3)


def test_values(store: Store) -> None:
    """Values come back in the order that was asked for; None is one that is not there, or no longer."""
    store.put("test:a", "1", expire_s=60)
    store.put("test:b", "2", expire_s=0.05)
    eventually(lambda: store.values(["test:b", "test:none", "test:a"]) == [None, None, "1"])
    assert store.values([]) == []
    store.remove("test:a")
    store.remove("test:a")
    assert store.values(["test:a"]) == [None]


def test_sets(store: Store) -> None:
    """Members of a set; the ranks of a sorted set are given once, the highest first, and forgotten below a score."""
    store.add_to_set("test:set", "x")
    store.add_to_set("test:set", "x")
    assert store.members("test:set") == {"x"}
    store.remove_from_set("test:set", "y")
    store.remove_from_set("test:set", "x")
    assert store.members("test:set") == set()
    for name, score in (("a", 1.0), ("b", 3.0), ("c", 2.0), ("a", 9.0)):
        store.rank("test:ranks", name, score)
    assert store.highest("test:ranks", 2) == ["b", "c"]
    store.forget_below("test:ranks", 2.0)
    assert store.highest("test:ranks", 9) == ["b", "c"]


def test_scripts(store: Store) -> None:
    """A script gets its arguments as text and answers with whole numbers, texts and lists."""
    assert store.script("return {ARGV[1], ARGV[2] + 1, redis.call('INCR', 'test:count')}", ["a", 2]) == ["a", 3, 1]
    assert store.script("return false") is None
    with pytest.raises(StoreUnreachable, match="no such thing"):
        store.script("return redis.error_reply('no such thing')")


def test_streams(store: Store) -> None:
    """What is appended is read once behind a place; an empty stream has a place too, and waiting has an end."""
    assert store.last_id("test:stream") == "0-0"
    store.append("test:stream", {"n": "1"}, keep=100)
    place = store.last_id("test:stream")
    store.append("test:stream", {"n": "2"}, keep=100)
    ((name, fields),) = store.read("test:stream", place, wait_s=0.1)
    assert fields == {"n": "2"}
    began = time.monotonic()
    assert store.read("test:stream", name, wait_s=0.1) == []
    assert time.monotonic() - began < 1
    assert [each["n"] for _, each in store.read("test:stream", "0-0", wait_s=0.1)] == ["1", "2"]


@pytest.fixture
def stopped(redis_there: None, tmp_path: Path) -> Iterator[Store]:
    """Give out a connection to a Redis that was there and was killed."""
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
    """Whatever is asked, the answer is StoreUnreachable and comes quickly; when Redis is back, so is the store."""
    for ask in ASKING:
        began = time.monotonic()
        with pytest.raises(StoreUnreachable, match=r"Redis at 127\.0\.0\.1:\d+/0 does not answer"):
            ask(stopped)
        assert time.monotonic() - began < 1


def test_a_password_is_not_told() -> None:
    """The address in the message is without the password."""
    with pytest.raises(StoreUnreachable) as caught:
        Store("redis://:very-secret@127.0.0.1:1/0").ping()
    assert "very-secret" not in caught.value.message
