"""Whoever reaches Redis without the key can put anything into a queue: no lane ends of it."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable
from typing import Any, cast

import pytest
from redis import Redis as Client

from sojourn.messaging.freshness import QUEUE
from sojourn.messaging.signing import HEADER, sign
from tasks.step import link
from tests.conftest import eventually
from tests.integration.conftest import KEY, Cluster
from tests.integration.steps import marker, zeroth

Raw = dict[str, Any]

#: How many are put into a queue at once, and how long a lane may take to drop them.
FLOOD, FLOOD_S = 10_000, 20


def _client(cluster: Cluster) -> Client:
    return Client.from_url(cluster.redis.url)


def _signed(cluster: Cluster) -> Raw:
    """Return a correctly signed message for alpha as Redis holds it, which nobody has taken."""
    message = cluster.message()
    link(zeroth, "nowhere", message.plan).apply_async((message.to_text(),))
    _, text = cast("tuple[bytes, bytes]", _client(cluster).brpop(["nowhere"], timeout=5))
    raw: Raw = json.loads(text)
    raw["headers"][QUEUE] = "alpha"
    raw["headers"][HEADER] = sign(KEY, raw["headers"], base64.b64decode(raw["body"]))
    return raw


def _without(*path: str) -> Callable[[Raw], None]:
    def change(raw: Raw) -> None:
        place = raw
        for name in path[:-1]:
            place = place[name]
        del place[path[-1]]

    return change


def _with(value: object, *path: str) -> Callable[[Raw], None]:
    def change(raw: Raw) -> None:
        place = raw
        for name in path[:-1]:
            place = place[name]
        place[path[-1]] = value

    return change


#: Texts that are no message at all.
TEXTS = {
    "empty": b"",
    "not_json": b"hello",
    "not_utf8": b"\xff\xfe{}",
    "null": b"null",
    "number": b"7",
    "text": b'"text"',
    "list": b"[]",
    "empty_mapping": b"{}",
    "deep": b"[" * 200_000,
    "deep_mapping": b'{"headers":' * 100_000,
    "thousands_of_digits": b'{"headers": ' + b"9" * 5000 + b"}",
    "a_type_of_kombu": b'{"__type__": "decimal", "__value__": "x"}',
    "a_type_that_is_none": b'{"__type__": [], "__value__": 1}',
    "fifty_megabytes": b'{"body": "' + b"x" * 50_000_000 + b'"}',
}

#: What is changed in a message that was signed.
CHANGES = {
    "signature_not_ascii": _with("ü" * 64, "headers", HEADER),
    "signature_of_surrogates": _with("\ud800" * 64, "headers", HEADER),
    "signature_is_a_list": _with([1], "headers", HEADER),
    "no_signature": _without("headers", HEADER),
    "no_headers": _without("headers"),
    "headers_are_a_list": _with([1], "headers"),
    "no_body": _without("body"),
    "body_is_a_number": _with(7, "body"),
    "body_is_not_base64": _with("ü", "body"),
    "a_bomb": _with("zlib", "headers", "compression"),
    "deep_header": _with(json.loads("[" * 900 + "]" * 900), "headers", "x"),
}

#: What nobody has signed of a message, so that it runs whatever is there.
UNSIGNED_CHANGES = {
    "no_properties": _without("properties"),
    "properties_are_null": _with(None, "properties"),
    "no_delivery_tag": _without("properties", "delivery_tag"),
    "delivery_tag_is_a_list": _with([], "properties", "delivery_tag"),
    "delivery_info_is_a_number": _with(7, "properties", "delivery_info"),
    "another_body_encoding": _with("rot13", "properties", "body_encoding"),
    "another_content_type": _with("application/x-python-serialize", "content-type"),
    "another_content_encoding": _with("no-such-thing", "content-encoding"),
    "content_type_is_a_list": _with([], "content-type"),
}


def _goes_on(cluster: Cluster) -> None:
    """Wait until alpha has taken what was sent after the rest."""
    answer = marker.s("after").set(queue="alpha").apply_async()
    assert answer.get(timeout=20) == "after"
    assert cluster.workers["alpha"].poll() is None


@pytest.mark.parametrize("name", TEXTS)
def test_a_text_that_is_no_message(cluster: Cluster, name: str) -> None:
    """It is dropped, and the lane goes on."""
    _client(cluster).lpush("alpha", TEXTS[name])
    _goes_on(cluster)


@pytest.mark.parametrize("name", CHANGES)
def test_a_message_whose_signature_is_wrong(cluster: Cluster, name: str) -> None:
    """It is dropped, whatever is in the place of its parts, and the lane goes on."""
    raw = _signed(cluster)
    CHANGES[name](raw)
    _client(cluster).lpush("alpha", json.dumps(raw))
    _goes_on(cluster)


@pytest.mark.parametrize("name", UNSIGNED_CHANGES)
def test_what_nobody_has_signed_is_not_read(cluster: Cluster, name: str) -> None:
    """A signed message runs whatever stands beside what was signed, where it was put."""
    raw = _signed(cluster)
    text = json.loads(base64.b64decode(raw["body"]))[0][0]
    acts = cluster.place / f"{json.loads(text)['id']}.acts"
    UNSIGNED_CHANGES[name](raw)
    _client(cluster).lpush("alpha", json.dumps(raw))
    _goes_on(cluster)
    eventually(acts.exists)
    assert acts.read_text() == "zeroth@alpha\n"


def test_a_flood_costs_seconds(cluster: Cluster) -> None:
    """Ten thousand messages of each of three kinds are dropped while others are taken."""
    raw = _signed(cluster)
    raw["headers"][HEADER] = "ü"
    kinds = [json.dumps(raw).encode(), b"null", b"[" * 5000]
    for kind in kinds:
        began = time.monotonic()
        _client(cluster).lpush("alpha", *[kind] * FLOOD)
        _goes_on(cluster)
        assert time.monotonic() - began < FLOOD_S


def test_a_flood_does_not_fill_the_log(cluster: Cluster) -> None:
    """What is refused is logged a hundred times at once, then once in a second, with the number."""
    before = cluster.log("alpha").count("was dropped")
    _client(cluster).lpush("alpha", *[b"null"] * FLOOD)
    _goes_on(cluster)
    assert cluster.log("alpha").count("was dropped") - before < 150


def _of_another_type(server: Client) -> None:
    server.delete("alpha")
    server.set("alpha", "text")


#: How Redis is made to refuse what a lane asks, and how that ends.
REFUSALS: dict[str, tuple[Callable[[Client], object], Callable[[Client], object]]] = {
    "queue_of_another_type": (_of_another_type, lambda server: server.delete("alpha")),
    "read_only": (
        lambda server: server.config_set("min-replicas-to-write", 1),
        lambda server: server.config_set("min-replicas-to-write", 0),
    ),
    "full": (
        lambda server: server.config_set("maxmemory", 1),
        lambda server: server.config_set("maxmemory", 0),
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_what_redis_refuses_ends_no_lane(cluster: Cluster, name: str) -> None:
    """The lane asks again until it is answered."""
    begin, end = REFUSALS[name]
    begin(_client(cluster))
    time.sleep(3)
    end(_client(cluster))
    _goes_on(cluster)
