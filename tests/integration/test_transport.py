"""What was changed of Celery's and Kombu's own: the clients of a channel, and when events are told."""

from __future__ import annotations

from typing import Any

from tests.conftest import eventually
from tests.integration.conftest import Cluster
from tests.integration.steps import zeroth
from workflows import transport


def test_a_channel_keeps_its_client(cluster: Cluster) -> None:
    """It is the same for each message, until its pool of connections is another one; then it works too."""
    with cluster.app.connection_for_write() as connection:
        channel: Any = connection.default_channel
        assert type(connection.default_channel) is transport.Channel
        with channel.conn_or_acquire() as first, channel.conn_or_acquire() as second:
            assert first is second
        channel._disconnect_pools()
        with channel.conn_or_acquire() as third:
            assert third is not first
            assert third.ping()


def test_encrypted_redis_is_encrypted(cluster: Cluster) -> None:
    """The address decides, as with Kombu's own transport."""
    ours = cluster.app.connection_for_write("rediss://127.0.0.1:1/0")
    assert isinstance(ours.transport, transport.Transport)
    assert ours.as_uri().startswith("rediss://")
    assert ours.ssl


def test_what_flower_is_told(cluster: Cluster) -> None:
    """An event is told though no other follows it."""
    told: list[str] = []

    def hear(event: dict[str, Any]) -> None:
        told.append(event["uuid"])

    with cluster.app.connection_for_read() as connection:
        receiver = cluster.app.events.Receiver(connection, handlers={"task-succeeded": hear})
        with receiver.consumer_context() as (hearing, _, _):
            sent = cluster.send(zeroth, cluster.message(), "alpha")
            eventually(lambda: hearing.drain_events(timeout=5) or sent.id in told)
            sent.get(timeout=20)
