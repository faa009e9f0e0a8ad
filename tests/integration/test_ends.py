"""When a host tells the end of a migration by itself: if nobody else does, and not while a step is at work on it."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from sojourn import commit
from sojourn.images import ImageDirectory
from sojourn.journal import Entry, lock
from sojourn.model import Message, Outcome, Phase, Role, State
from sojourn.process import boot_id
from tests.conftest import eventually
from tests.integration.conftest import PLAN, Cluster, Redis

STALL_S = 0.5


@pytest.fixture(scope="module")
def cluster(redis: Redis, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Give out a cluster whose reconcilers are impatient. No host announces itself, so none can be asked."""
    made = Cluster(redis, tmp_path_factory.mktemp("cluster"), reconcile=True, reconcile_s=0.1, stall_s=STALL_S)
    try:
        made.start()
        yield made
    finally:
        made.stop()


def arrived(cluster: Cluster) -> tuple[Message, Entry]:
    """Return a migration whose process has arrived on beta, of which people were not told."""
    message, journal = cluster.message(), cluster.journal("beta")
    cluster.ledger.open(message.id, message.plan)
    entry = journal.advance(journal.open(message.id, Role.DESTINATION, PLAN), Phase.RESTORING)
    for moment in commit.TRANSITIONS:
        assert commit.main(str(journal.path), message.id, moment) == 0
    journal.learn(entry, {"restore_boot": boot_id()})
    return message, entry


def becomes_pending(cluster: Cluster, message: Message) -> None:
    """Wait until it is told that the process has arrived, and that it is not known what the source did."""
    eventually(lambda: cluster.state(message) is State.CLEANUP_PENDING, within_s=30)


def test_an_end_that_nobody_told_is_told_by_the_host_that_knows(cluster: Cluster) -> None:
    """The worker died with the step; the source may be dead too."""
    message, _ = arrived(cluster)
    becomes_pending(cluster, message)


def test_no_end_is_told_while_a_step_is_at_work(cluster: Cluster) -> None:
    """What the step hands on, when it is done, tells more: until then it would be less than what is true."""
    message, entry = arrived(cluster)
    directory, journal = ImageDirectory(cluster.settings("beta").runtime_dir / message.id), cluster.journal("beta")
    with lock(directory.lock, 5):
        journal.start_step(entry, "restore", "beta", {})
        later, _ = arrived(cluster)
        becomes_pending(cluster, later)
        assert cluster.state(message) is State.QUEUED, "it was looked at before the later one"
        ended = time.time()
        journal.finish_step(entry, "restore", Outcome("process 4242 runs on beta"))
    becomes_pending(cluster, message)
    assert time.time() - ended >= STALL_S, "what it hands on has a while to come through"
