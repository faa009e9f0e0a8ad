"""Signed messages, with real workers: which are accepted and which are refused."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable
from typing import Any, cast

import pytest
from redis import Redis as Client

from sojourn.messaging.freshness import QUEUE, UNTIL
from sojourn.messaging.signing import HEADER, sign
from sojourn.state.message import Message
from tasks.step import link
from tests.conftest import eventually
from tests.integration.conftest import KEY, Cluster
from tests.integration.steps import first, marker, zeroth

Raw = dict[str, Any]


def _captured(cluster: Cluster, message: Message) -> Raw:
    """Return a correctly signed message as Redis holds it, from a queue that nobody consumes."""
    link(zeroth, "nowhere", message.plan).apply_async((message.to_text(),))
    client = Client.from_url(cluster.redis.url)
    _, text = cast("tuple[bytes, bytes]", client.brpop(["nowhere"], timeout=5))
    raw: Raw = json.loads(text)
    meant_for(raw, "alpha")
    return raw


def meant_for(raw: Raw, queue: str, **headers: Any) -> None:
    """Sign a message anew, as for another queue."""
    raw["headers"] |= {QUEUE: queue} | headers
    raw["headers"][HEADER] = sign(KEY, raw["headers"], base64.b64decode(raw["body"]))


def _inject(cluster: Cluster, raw: Raw) -> None:
    """Put a message into alpha's queue, and wait until alpha has processed the one after it."""
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
    raw["headers"][HEADER] = sign(
        "the key of another cluster", raw["headers"], base64.b64decode(raw["body"])
    )


def _signature_that_is_no_text(raw: Raw) -> None:
    raw["headers"][HEADER] = None


def _another_pid(raw: Raw) -> None:
    _body(raw, lambda body: body[0].append(body[0].pop().replace('"pid": 4242', '"pid": 1234')))


def _another_chain(raw: Raw) -> None:
    _body(raw, lambda body: body[2].update(chain=[{"task": "test.marker", "args": ["x"]}]))


def _header(name: str, value: Any) -> Callable[[Raw], None]:
    def tamper(raw: Raw) -> None:
        raw["headers"][name] = value

    tamper.__name__ = f"another_{name}"
    return tamper


TAMPERING = [
    *(
        _unsigned,
        _signed_by_another_key,
        _signature_that_is_no_text,
        _another_pid,
        _another_chain,
    ),
    _header("task", first.task_name),
    _header("retries", 1),
    _header("timelimit", [9999, 9999]),
    _header("id", "11111111-2222-3333-4444-555555555555"),
    _header("expires", "2099-01-01T00:00:00"),
    _header("new", "x"),
]


def test_a_signed_message_is_accepted(cluster: Cluster) -> None:
    """A message that is as it was sent is accepted, whoever put it into the queue."""
    message = cluster.message()
    _inject(cluster, _captured(cluster, message))
    eventually(lambda: cluster.acts(message) == ["zeroth@alpha"])


@pytest.mark.parametrize("tamper", TAMPERING, ids=lambda tamper: tamper.__name__.strip("_"))
def test_a_tampered_message_is_refused(cluster: Cluster, tamper: Callable[[Raw], None]) -> None:
    """Whatever of it was changed, its step does not run, and the worker goes on."""
    message = cluster.message()
    raw = _captured(cluster, message)
    refused = _refused_by_alpha(cluster)
    tamper(raw)
    _inject(cluster, raw)
    eventually(lambda: _refused_by_alpha(cluster) > refused)
    assert cluster.acts(message) == []
    assert cluster.phase(message, "alpha") is None
    assert cluster.workers["alpha"].poll() is None


def _refused_by_alpha(cluster: Cluster) -> int:
    return cluster.log("alpha").count("Refused an unsigned or wrongly signed message")


def test_a_worker_with_another_key_takes_no_messages_of_ours(cluster: Cluster) -> None:
    """It consumes another shared queue, and no message that it would refuse."""
    stranger = cluster.worker("gamma", SOJOURN_KEY="the key before it was changed")
    try:
        eventually(lambda: " ready." in cluster.log("gamma"), within_s=30)
        names = [str(number) for number in range(20)]
        assert [marker.delay(name).get(timeout=10) for name in names] == names
        assert "wrongly signed" not in cluster.log("gamma")
    finally:
        stranger.kill()


def test_a_replayed_message_does_nothing(cluster: Cluster) -> None:
    """A good message that is delivered three times is begun once, whatever the journal holds."""
    message = cluster.message()
    raw = _captured(cluster, message)
    for _ in range(3):
        _inject(cluster, raw)
    eventually(lambda: cluster.acts(message))
    assert cluster.acts(message) == ["zeroth@alpha"]
    assert cluster.log("alpha").count(f"id {raw['headers']['id']}: it was taken before") >= 1
    assert "Traceback" not in cluster.log("alpha")


def test_a_recorded_request_is_not_done_again(cluster: Cluster) -> None:
    """Not by a worker that was started again, and whatever became of its results."""
    client = Client.from_url(cluster.redis.url)
    answer = marker.s("once").set(queue="nowhere").apply_async()
    _, text = cast("tuple[bytes, bytes]", client.brpop(["nowhere"], timeout=5))
    raw: Raw = json.loads(text)
    meant_for(raw, "alpha")
    _inject(cluster, raw)
    assert answer.get(timeout=10) == "once"
    client.delete(f"celery-task-meta-{answer.id}")
    cluster.workers["alpha"].kill()
    cluster.workers["alpha"] = cluster.worker("alpha")
    _inject(cluster, raw)
    assert not client.exists(f"celery-task-meta-{answer.id}")


def test_a_message_for_another_host(cluster: Cluster) -> None:
    """A step of one host that is put into another's queue is not done there."""
    message = cluster.message()
    raw = _captured(cluster, message)
    meant_for(raw, "beta")
    _inject(cluster, raw)
    assert cluster.acts(message) == []
    assert "it is for the queue 'beta'" in cluster.log("alpha")


def test_a_message_that_comes_late(cluster: Cluster) -> None:
    """What is no good any more is dropped; so is what has no end, as an earlier version sent it."""
    for until in (time.time() - 1, None):
        message = cluster.message()
        raw = _captured(cluster, message)
        meant_for(raw, "alpha", **{UNTIL: until})
        _inject(cluster, raw)
        assert cluster.acts(message) == []
        assert f"{raw['headers']['id']}': it comes too late" in cluster.log("alpha")


def test_a_malformed_migration_is_refused(cluster: Cluster) -> None:
    """A signed step whose argument is no migration fails and touches nothing."""
    malformed = json.dumps({"id": "../../etc", "plan": {}, "facts": {}})
    step = link(zeroth, "alpha", cluster.message().plan)
    answer = step.apply_async((malformed,))
    answer.get(timeout=10, propagate=False)
    assert answer.failed()
