"""When a host records the end of a migration by itself: late, and never while a step is at work."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from sojourn.model import Phase, Role, State
from sojourn.state.entry import Entry
from sojourn.state.lock import lock
from sojourn.state.message import Message, Outcome
from sojourn.system.process import boot_id
from sojourn.transfer.image_directory import ImageDirectory
from tests.conftest import eventually
from tests.integration.conftest import PLAN, Cluster, Redis
from tests.integration.steps import commit_there

STALL_S = 0.5


@pytest.fixture(scope="module")
def cluster(redis: Redis, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Give out a cluster of impatient reconcilers; no host announces itself, so none is asked."""
    made = Cluster(
        redis, tmp_path_factory.mktemp("cluster"), reconcile=True, reconcile_s=0.1, stall_s=STALL_S
    )
    try:
        made.start()
        yield made
    finally:
        made.stop()


def arrived(cluster: Cluster) -> tuple[Message, Entry]:
    """Return a migration whose process has arrived on beta, which the ledger does not know."""
    message, journal = cluster.message(), cluster.journal("beta")
    cluster.ledger.open(message.id, message.plan)
    entry = journal.advance(journal.open(message.id, Role.DESTINATION, PLAN), Phase.RESTORING)
    commit_there(journal.path, message.id)
    journal.learn(entry, {"restore_boot": boot_id()})
    return message, entry


def becomes_pending(cluster: Cluster, message: Message) -> None:
    """Wait until the ledger has the process's arrival, and that the source's end is not known."""
    eventually(lambda: cluster.state(message) is State.CLEANUP_PENDING, within_s=30)


def test_an_end_that_was_not_recorded_is_recorded_by_the_host_that_has_it(cluster: Cluster) -> None:
    """The worker died with the step; the source may be dead too."""
    message, _ = arrived(cluster)
    becomes_pending(cluster, message)


def test_no_end_is_recorded_while_a_step_is_at_work(cluster: Cluster) -> None:
    """The message that the step sends when it is done has more facts than this host's journal."""
    message, entry = arrived(cluster)
    directory = ImageDirectory(cluster.settings("beta").runtime_dir / message.id)
    journal = cluster.journal("beta")
    with lock(directory.lock, 5):
        journal.start_step(entry, "restore", "beta", {})
        later, _ = arrived(cluster)
        becomes_pending(cluster, later)
        assert cluster.state(message) is State.QUEUED, "it was looked at before the later one"
        ended = time.time()
        journal.finish_step(entry, "restore", Outcome("process 4242 runs on beta"))
    becomes_pending(cluster, message)
    assert time.time() - ended >= STALL_S, "the step's message has some time to arrive"
