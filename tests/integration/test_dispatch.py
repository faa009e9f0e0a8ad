"""A migration's way through the queue: real workers with their reconcilers, steps without work."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from sojourn.client import migrate
from sojourn.cluster.queue import Counts, Entry
from sojourn.errors import MigrationError
from sojourn.model import Failure, State
from sojourn.state.message import Message
from tests.conftest import eventually
from tests.integration.conftest import Cluster, Redis
from tests.integration.steps import let_go
from workflows.recover import abort

EMPTY = Counts(0, 0, 0, 0)


@pytest.fixture(scope="module")
def cluster(redis: Redis, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Give out hosts whose leases are short and whose reconcilers look often."""
    made = Cluster(
        redis, tmp_path_factory.mktemp("cluster"), reconcile=True, lease_s=2, reconcile_s=0.3
    )
    with made.called_by_programs():
        made.start()
        made.announce(max_outgoing=2)
        yield made


@pytest.fixture(autouse=True)
def emptied(cluster: Cluster) -> Iterator[None]:
    """At the end of each test, nothing may be left in the queue."""
    yield
    eventually(lambda: cluster.queue.counts() == EMPTY, within_s=20)


def asked(cluster: Cluster, message: Message) -> Any:
    """Ask for a migration as programs do; return the answer to wait for."""
    return migrate.apply_async(kwargs=message.plan.to_json(), task_id=message.id)


def running(cluster: Cluster, messages: list[Message]) -> list[Message]:
    """Return those that have begun and not ended."""
    return [message for message in messages if cluster.state(message) is State.RUNNING]


def test_one_goes_by_way_of_the_queue(cluster: Cluster) -> None:
    """It begins at once, and its places are given back when it has ended."""
    message = cluster.migration()
    assert asked(cluster, message).get(timeout=20)["state"] == "completed"
    eventually(lambda: cluster.queue.counts() == EMPTY)


def test_no_more_than_there_is_room_for(cluster: Cluster) -> None:
    """The third waits until one of the first two has ended; then it begins by itself."""
    messages = [cluster.migration(pid, first="wait") for pid in (101, 102, 103)]
    answers = [asked(cluster, message) for message in messages]
    eventually(lambda: cluster.queue.counts() == Counts(1, 0, 2, 0))
    time.sleep(2.5)  # longer than a lease: the reconcilers hold the places
    assert cluster.queue.counts() == Counts(1, 0, 2, 0)
    begun, _ = running(cluster, messages)
    let_go(cluster.place, begun.id)
    eventually(
        lambda: len(running(cluster, messages)) == 2 and begun not in running(cluster, messages)
    )
    for message in messages:
        let_go(cluster.place, message.id)
    assert {answer.get(timeout=20)["state"] for answer in answers} == {"completed"}


def test_an_abort_while_it_waits(cluster: Cluster) -> None:
    """It is taken out of the queue and has ended; no host has a row of it, and none is asked."""
    first = [cluster.migration(pid, first="wait") for pid in (201, 202)]
    answers = [asked(cluster, message) for message in first]
    eventually(lambda: cluster.queue.counts().taken == 2)
    waits = cluster.migration(203)
    answer = asked(cluster, waits)
    eventually(lambda: cluster.queue.counts().waiting == 1)
    cluster.ledger.record_failure(waits.id, Failure("ABORTED", "Aborted by a test."))
    abort(waits, waits=True)
    with pytest.raises(MigrationError, match="Aborted by a test"):
        answer.get(timeout=10)
    assert cluster.state(waits) is State.ABORTED
    assert cluster.phase(waits, "alpha") is None
    for message in first:
        let_go(cluster.place, message.id)
    assert {answer.get(timeout=20)["state"] for answer in answers} == {"completed"}


def test_what_was_queued_and_not_dispatched(cluster: Cluster) -> None:
    """If the process that queued a migration died at once, a reconciler begins it."""
    message = cluster.migration(301)
    cluster.ledger.open(message.id, message.plan)
    cluster.queue.put([Entry(message.id, message.id, message.plan.to_json())])
    eventually(lambda: cluster.state(message) is State.COMPLETED, within_s=20)


def test_handed_out_again_while_under_way(cluster: Cluster) -> None:
    """A lease that was lost begins nothing a second time, and the place is held again."""
    message = cluster.migration(401, first="wait")
    answer = asked(cluster, message)
    eventually(lambda: "first@alpha" in cluster.acts(message))
    cluster.queue.end(message.id)
    cluster.queue.put([Entry(message.id, message.id, message.plan.to_json())])
    eventually(lambda: cluster.queue.counts().taken == 1)
    let_go(cluster.place, message.id)
    assert answer.get(timeout=20)["state"] == "completed"
    assert cluster.acts(message).count("zeroth@alpha") == 1


def test_handed_out_again_after_its_end(cluster: Cluster) -> None:
    """A migration that has ended is taken out of the queue, and none of its steps is done."""
    message = cluster.migration(501)
    asked(cluster, message).get(timeout=20)
    done = cluster.acts(message)
    cluster.queue.put([Entry(message.id, message.id, message.plan.to_json())])
    eventually(lambda: cluster.queue.counts() == EMPTY)
    assert cluster.acts(message) == done


def test_a_host_that_went_silent_while_it_waited(cluster: Cluster) -> None:
    """It waits for the host, and begins when that is back."""
    message = cluster.migration(601)
    cluster.registry.withdraw("beta")
    cluster.ledger.open(message.id, message.plan)
    cluster.queue.put([Entry(message.id, message.id, message.plan.to_json())])
    time.sleep(1)
    assert cluster.queue.counts() == Counts(1, 0, 0, 0)
    cluster.announce("beta")
    eventually(lambda: cluster.state(message) is State.COMPLETED, within_s=20)


def test_a_host_that_does_not_come_back(cluster: Cluster) -> None:
    """No migration waits without end: it becomes unreachable, and nothing was touched."""
    message = cluster.migration(651)
    cluster.registry.withdraw("beta")
    cluster.ledger.open(message.id, message.plan)
    cluster.queue.put([Entry(message.id, message.id, message.plan.to_json())])
    eventually(lambda: cluster.state(message) is State.UNREACHABLE, within_s=30)
    cluster.announce("beta")
    assert cluster.acts(message) == []
    eventually(lambda: cluster.queue.counts() == EMPTY)


def test_a_rollback_gives_the_places_back(cluster: Cluster) -> None:
    """Whatever it came to, there is room again."""
    message = cluster.migration(701, second="fail")
    with pytest.raises(MigrationError):
        asked(cluster, message).get(timeout=20)
    eventually(lambda: cluster.queue.counts() == EMPTY)
