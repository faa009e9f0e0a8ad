"""Signed messages, with real workers: what is believed and what is not."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any

import pytest
from redis import Redis as Client

from sojourn.model import Message
from tasks.step import leg
from tests.conftest import eventually
from tests.integration.conftest import Cluster
from tests.integration.steps import first, marker, zeroth
from workflows.signing import HEADER, sign

Raw = dict[str, Any]


def _captured(cluster: Cluster, message: Message) -> Raw:
    """Return a well signed message as it lies in Redis, taken from a queue that nobody reads."""
    leg([zeroth], "nowhere", message.plan).apply_async((message.to_text(),))
    client = Client.from_url(cluster.redis.url)
    raw: Raw = json.loads(client.brpop(["nowhere"], timeout=5)[1])  # type: ignore[index]  # it is not awaited
    return raw


def _inject(cluster: Cluster, raw: Raw) -> None:
    """Put a message into alpha's queue, and wait until alpha has taken it and what came after it."""
    raw["properties"]["delivery_info"]["routing_key"] = "alpha"
    Client.from_url(cluster.redis.url).lpush("alpha", json.dumps(raw))
    answer = marker.s("after").set(queue="alpha").apply_async()
    assert answer.get(timeout=10) == "after"


def _body(raw: Raw, change: Callable[[Any], None]) -> None:
    body = json.loads(base64.b64decode(raw["body"]))
    change(body)
    raw["body"] = base64.b64encode(json.dumps(body).encode()).decode()


def _unsigned(raw: Raw) -> None:
    del raw["headers"][HEADER]


def _signed_by_another_key(raw: Raw) -> None:
    raw["headers"][HEADER] = sign("a key of somebody else", raw["headers"], base64.b64decode(raw["body"]))


def _no_text_as_signature(raw: Raw) -> None:
    raw["headers"][HEADER] = None


def _another_pid(raw: Raw) -> None:
    _body(raw, lambda body: body[0].append(body[0].pop().replace('"pid": 4242', '"pid": 1234')))


def _another_leg(raw: Raw) -> None:
    _body(raw, lambda body: body[1].update(then=[first.name]))


def _another_chain(raw: Raw) -> None:
    _body(raw, lambda body: body[2].update(chain=[{"task": "test.marker", "args": ["x"]}]))


def _header(name: str, value: Any) -> Callable[[Raw], None]:
    def tamper(raw: Raw) -> None:
        raw["headers"][name] = value

    tamper.__name__ = f"another_{name}"
    return tamper


TAMPERING = [
    *(_unsigned, _signed_by_another_key, _no_text_as_signature, _another_pid, _another_leg, _another_chain),
    _header("task", first.task.name),
    _header("retries", 1),
    _header("timelimit", [9999, 9999]),
    _header("id", "11111111-2222-3333-4444-555555555555"),
    _header("expires", "2099-01-01T00:00:00"),
    _header("new", "x"),
]


def test_a_signed_message_is_done(cluster: Cluster) -> None:
    """A message as it was sent is done, also when it went a way of its own through Redis."""
    message = cluster.message()
    _inject(cluster, _captured(cluster, message))
    eventually(lambda: cluster.acts(message) == ["zeroth@alpha"])


@pytest.mark.parametrize("tamper", TAMPERING, ids=lambda tamper: tamper.__name__.strip("_"))
def test_a_tampered_message_is_refused(cluster: Cluster, tamper: Callable[[Raw], None]) -> None:
    """Whatever of it was changed, nothing of it is done, it is gone from the queue, and the worker lives on."""
    message = cluster.message()
    raw = _captured(cluster, message)
    refused = cluster.log("alpha").count("Refused an unsigned or wrongly signed message")
    tamper(raw)
    _inject(cluster, raw)
    eventually(lambda: cluster.log("alpha").count("Refused an unsigned or wrongly signed message") > refused)
    assert cluster.acts(message) == []
    assert cluster.phase(message, "alpha") is None
    assert cluster.workers["alpha"].poll() is None


def test_a_worker_with_another_key_takes_no_part(cluster: Cluster) -> None:
    """It consumes a shared queue of its own, and nothing that it would refuse."""
    stranger = cluster.worker("gamma", SOJOURN_KEY="a key that was not changed with the others")
    try:
        eventually(lambda: " ready." in cluster.log("gamma"), within_s=30)
        assert [marker.delay(str(number)).get(timeout=10) for number in range(20)] == [str(n) for n in range(20)]
        assert "wrongly signed" not in cluster.log("gamma")
    finally:
        stranger.kill()


def test_a_replayed_message_is_harmless(cluster: Cluster) -> None:
    """A good message put in again is answered from the journal, and does nothing."""
    message = cluster.message()
    raw = _captured(cluster, message)
    for _ in range(3):
        _inject(cluster, raw)
    eventually(lambda: cluster.acts(message))
    assert cluster.acts(message) == ["zeroth@alpha"]


def test_what_is_no_message_at_all(cluster: Cluster) -> None:
    """A signed step whose argument is no message touches nothing."""
    none = json.dumps({"id": "../../etc", "plan": {}, "facts": {}})
    answer = zeroth.task.signature((none,), queue="alpha").apply_async()
    answer.get(timeout=10, propagate=False)
    assert answer.failed()
