"""Kombu's channels with a client that they keep, on a real Redis."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from redis import Redis as Client

from sojourn.cluster.kept import GOOD_FOR_S
from sojourn.model import Untyped
from tests.integration.conftest import Cluster
from workflows import transport
from workflows.app import create_app


@pytest.fixture(autouse=True)
def keeping(cluster: Cluster) -> Iterator[None]:
    """Let the tester's application do what otherwise only a worker's does."""
    transport.keep_connections(cluster.app)
    yield
    cluster.app.conf.update(broker_transport=None)


def _client(channel: Untyped) -> Untyped:
    with channel.conn_or_acquire() as client:
        return client


def _interrupt(channel: Untyped) -> None:
    with channel.conn_or_acquire() as client:
        client.connection.send_command("ECHO", "unread")
        raise KeyboardInterrupt


def test_a_channel_keeps_its_client(cluster: Cluster) -> None:
    """All messages of a channel go by one connection."""
    with cluster.app.connection_for_write() as connection:
        channel = connection.default_channel
        assert isinstance(channel, transport.Channel)
        assert _client(channel) is _client(channel)
        numbers = {_client(channel).client_id() for _ in range(3)}
        assert len(numbers) == 1


def test_an_interrupted_command(cluster: Cluster) -> None:
    """Its answer, which nobody has read, is not taken for that of the next one."""
    with cluster.app.connection_for_write() as connection:
        channel = connection.default_channel
        with pytest.raises(KeyboardInterrupt):
            _interrupt(channel)
        assert _client(channel).echo("read") == b"read"


def test_a_connection_that_redis_closed(cluster: Cluster) -> None:
    """The message that finds it closed is sent by another one."""
    server = Client.from_url(cluster.redis.url)
    with cluster.app.connection_for_write() as connection:
        producer = connection.Producer()
        for number in range(2):
            server.client_kill_filter(_id=_client(connection.default_channel).client_id())
            producer.publish(number, routing_key="nowhere", retry=True, serializer="json")
    assert server.llen("nowhere") == 2


def test_a_connection_that_redis_has_closed(cluster: Cluster) -> None:
    """A worker that was idle while Redis was started again sends its next message all the same."""
    with cluster.app.connection_for_write() as connection:
        channel = connection.default_channel
        mine = _client(channel).client_id()
        with Client.from_url(cluster.app.conf.broker_url) as other:
            other.client_kill_filter(_id=mine)
        time.sleep(2 * GOOD_FOR_S)
        assert _client(channel).echo("sent") == b"sent"


def test_a_chord_whose_connection_redis_has_closed(cluster: Cluster) -> None:
    """So it is with the ends of a chord's parts."""
    backend = cluster.app.backend
    cluster.app.conf.update(sojourn_awaits_results=False)
    try:
        mine = backend.client.client_id()
        with Client.from_url(cluster.app.conf.broker_url) as other:
            other.client_kill_filter(_id=mine)
        time.sleep(2 * GOOD_FOR_S)
        assert backend.client.echo("sent") == b"sent"
    finally:
        cluster.app.conf.update(sojourn_awaits_results=True)


def test_encrypted_redis_is_encrypted(cluster: Cluster) -> None:
    """An address asks for it by itself only with Kombu's own transport."""
    settings = cluster.settings("tester").model_copy(update={"redis_url": "rediss://127.0.0.1:1/0"})
    encrypted = create_app(settings)
    transport.keep_connections(encrypted)
    cluster.app.set_current()
    connection = encrypted.connection_for_write()
    assert isinstance(connection.transport, transport.Transport)
    assert connection.ssl == {"ssl_cert_reqs": "required"}
