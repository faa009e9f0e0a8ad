"""When a host records the end of a migration by itself: late, and never while a step is at work."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

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


@pytest.fixture
def announced(redis_there: None, tmp_path: Path) -> Iterator[Cluster]:
    """Give out a more patient cluster, with a Redis of its own, whose hosts announce themselves."""
    server = Redis(tmp_path)
    server.start()
    made = Cluster(server, tmp_path, reconcile=True, reconcile_s=0.1, stall_s=3)
    try:
        made.start()
        made.announce()
        yield made
    finally:
        made.stop()
        server.stop()


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


def test_what_the_other_host_is_about_to_do_is_not_reported_as_pending(announced: Cluster) -> None:
    """While both hosts live, settling reports what they know together."""
    cluster = announced
    bookmark = cluster.ledger.bookmark()
    message, _ = arrived(cluster)
    directory = ImageDirectory(cluster.settings("beta").runtime_dir / message.id)
    with lock(directory.lock, 5):  # until the source has a row
        released = cluster.journal("alpha").open(message.id, Role.SOURCE, PLAN)
        for phase in (Phase.FREEZING, Phase.FROZEN, Phase.RELEASED):
            released = cluster.journal("alpha").advance(released, phase)
    eventually(lambda: cluster.state(message) is State.COMPLETED, within_s=30)
    events, _ = cluster.ledger.read(bookmark)
    mine = [event for event in events if event.migration == message.id]
    states = [event.data["state"] for event in mine if event.kind == "state"]
    assert State.COMPLETED in states
    assert State.CLEANUP_PENDING not in states


def test_a_tree_that_stands_frozen_too_long_is_in_doubt(announced: Cluster) -> None:
    """The destination announces itself, and nobody there gives a verdict."""
    announced.workers["beta"].kill()
    message = Message(str(uuid.uuid4()), replace(PLAN, max_freeze_s=1))
    announced.ledger.open(message.id, message.plan)
    journal = announced.journal("alpha")
    entry = journal.open(message.id, Role.SOURCE, message.plan)
    for phase in (Phase.FREEZING, Phase.FROZEN, Phase.RELEASED):
        entry = journal.advance(entry, phase)
    eventually(lambda: announced.state(message) is State.IN_DOUBT, within_s=30)
    why = "in doubt: beta announces itself, and gives no verdict"
    eventually(lambda: why in announced.log("alpha"))
