"""The events that a lane sends to Flower."""

from __future__ import annotations

from functools import partial
from typing import Any

from tests.conftest import eventually
from tests.integration.conftest import Cluster
from tests.integration.steps import zeroth


def test_an_event_arrives_though_no_other_follows(cluster: Cluster) -> None:
    """It waits for others only for a moment, and also after earlier ones were sent."""
    succeeded: list[str] = []

    def record(event: dict[str, Any]) -> None:
        succeeded.append(event["uuid"])

    def has_arrived(task: str) -> bool:
        drained.drain_events(timeout=20)
        return task in succeeded

    with cluster.app.connection_for_read() as connection:
        receiver = cluster.app.events.Receiver(connection, handlers={"task-succeeded": record})
        with receiver.consumer_context() as (drained, _, _):
            for _ in range(2):
                sent = cluster.send(zeroth, cluster.message(), "alpha")
                eventually(partial(has_arrived, sent.id), within_s=30)
                sent.get(timeout=20)
