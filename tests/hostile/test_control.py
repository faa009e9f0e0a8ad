"""Celery's remote control has no signature: who reaches Redis may ask with it, and do nothing."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from redis import Redis as Client

from tests.conftest import eventually
from tests.integration.conftest import KEY, Cluster
from tests.integration.steps import marker
from workflows.border import READING, Border

#: Where Celery's workers listen, in database 0.
CHANNEL = "/0.celery.pidbox"

#: Commands that change something in a worker, with arguments that would.
CHANGING: dict[str, dict[str, Any]] = {
    "shutdown": {},
    "revoke": {"task_id": ["x"], "terminate": True},
    "revoke_by_stamped_headers": {"headers": {"a": "b"}, "terminate": True},
    "terminate": {"signal": "KILL", "task_id": ["x"]},
    "rate_limit": {"task_name": "test.marker", "rate_limit": "1/h"},
    "time_limit": {"task_name": "test.marker", "hard": 0.001},
    "pool_grow": {"n": 1},
    "pool_shrink": {"n": 3},
    "pool_restart": {},
    "autoscale": {"max": 1, "min": 1},
    "add_consumer": {"queue": "beta"},
    "cancel_consumer": {"queue": "alpha"},
    "disable_events": {},
    "election": {"id": "1", "topic": "task", "action": {}},
    "hello": {"from_node": "x", "revoked": ["x"]},
    "memdump": {},
}

REPLY = {"exchange": "reply.celery.pidbox", "routing_key": "somebody"}

#: What may be published to all workers besides.
ODD: dict[str, object] = {
    "null": None,
    "a_number": 7,
    "a_list": [],
    "no_properties": {"body": "e30="},
    "a_body_that_is_no_mapping": {"body": base64.b64encode(b"[]").decode(), "properties": {}},
    "a_body_that_is_no_json": {"body": "AAAA", "properties": {}},
}


def _asked(method: str, clock: object = 1, **more: Any) -> str:
    """Return a command as Celery's callers publish it."""
    asked = {"method": method, "arguments": {}, "destination": None, "ticket": "t"} | more
    properties = {
        "body_encoding": "base64",
        "delivery_tag": "x",
        "delivery_info": {"exchange": "celery.pidbox", "routing_key": ""},
    }
    return json.dumps(
        {
            "body": base64.b64encode(json.dumps(asked).encode()).decode(),
            "content-type": "application/json",
            "content-encoding": "utf-8",
            "headers": {"clock": clock},
            "properties": properties,
        }
    )


def _publish(cluster: Cluster, *texts: str | bytes) -> None:
    with Client.from_url(cluster.redis.url).pipeline(transaction=False) as block:
        for text in texts:
            block.publish(CHANNEL, text)
        # Two lanes listen: both hosts' workers.
        assert block.execute() == [2] * len(texts)


def _goes_on(cluster: Cluster) -> None:
    """Check that alpha takes steps, and answers what may be asked."""
    answer = marker.s("after").set(queue="alpha").apply_async()
    assert answer.get(timeout=20) == "after"
    assert eventually(lambda: _answers(cluster), within_s=20)
    assert cluster.workers["alpha"].poll() is None


def _answers(cluster: Cluster) -> bool:
    return bool(cluster.app.control.ping(destination=["main@alpha"], timeout=0.5))


@pytest.mark.parametrize("method", CHANGING)
def test_a_command_that_changes_something(cluster: Cluster, method: str) -> None:
    """It is refused, and logged by its name."""
    _publish(cluster, _asked(method, arguments=CHANGING[method], reply_to=REPLY))
    eventually(lambda: f"Refused the command '{method}'" in cluster.log("alpha"))
    _goes_on(cluster)


def test_celery_itself_cannot_shut_a_worker_down(cluster: Cluster) -> None:
    """Nor stop it from taking what is in its queue, as the commands of Celery's own program do."""
    cluster.app.control.shutdown()
    cluster.app.control.cancel_consumer("alpha")
    cluster.app.control.rate_limit("test.marker", "1/h")
    _goes_on(cluster)
    _goes_on(cluster)


@pytest.mark.parametrize("name", ODD)
def test_what_is_no_command(cluster: Cluster, name: str) -> None:
    """It is dropped."""
    _publish(cluster, json.dumps(ODD[name]))
    _goes_on(cluster)


def test_what_cannot_be_parsed(cluster: Cluster) -> None:
    """Neither deep nesting, nor an enormous clock, nor bytes that are no text harm a lane."""
    digits = json.dumps("digits")
    _publish(cluster, b"[" * 200_000, b"\xff\xfe", b"", _asked("ping", clock=digits * 1000))
    _publish(cluster, _asked("ping").replace('"clock": 1', f'"clock": {"9" * 4000}'))
    _publish(cluster, _asked("ping", pattern="(a+)+$", matcher="pcre"))
    _publish(cluster, _asked("ping", reply_to={"exchange": [], "routing_key": {}}))
    _goes_on(cluster)


def test_a_flood_of_commands(cluster: Cluster) -> None:
    """Three thousand refused commands keep nobody from taking steps."""
    _publish(cluster, *[_asked("shutdown")] * 3000)
    _goes_on(cluster)


def test_what_is_asked_is_answered(cluster: Cluster) -> None:
    """Flower and ``celery inspect`` still see what workers do."""
    for method in READING:
        answers = cluster.app.control.broadcast(method, reply=True, timeout=10, limit=2)
        assert {name for each in answers for name in each} == {"main@alpha", "main@beta"}, method


def test_what_flower_asks_all_the_time_is_dropped_without_a_word() -> None:
    """Events are on already; a line and a count for each would hide what matters."""
    reasons: list[str] = []
    asked: dict[str, Any] = {"method": "enable_events", "arguments": {}, "destination": None}
    body = base64.b64encode(json.dumps(asked).encode()).decode()
    text = json.dumps({"body": body}).encode()
    assert Border(KEY, reasons.append).control([b"pmessage", b"p", b"c", text]) is None
    assert reasons == []
