"""Who is called when a migration has ended, on real workers: whatever dies, at least once."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from sojourn.client import migrate
from sojourn.cluster.account import NoticeRecord
from sojourn.migration.context import Host
from sojourn.model import State
from sojourn.notices.outbox import Outbox
from sojourn.notices.target import Target
from sojourn.state.message import Message
from sojourn.system.caller import current
from tests.conftest import eventually
from tests.integration.conftest import Cluster, Redis
from tests.integration.test_capacity import sojourn
from tests.receiver import Receiver, receiving
from workers.metrics import Counted, HostCollector
from workflows.conclude import record_doubt

SECRET = "T3BlblNlc2FtZVRoYXROb2JvZHlFbHNlS25vd3MhISE="


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    """Give out a receiver of notices."""
    with receiving() as made:
        yield made


@pytest.fixture(scope="module")
def cluster(
    redis: Redis, receiver: Receiver, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cluster]:
    """Give out two hosts that call a web address and an executable, with their reconcilers."""
    place = tmp_path_factory.mktemp("cluster")
    script = place / "after-migration"
    script.write_text(f"#!/bin/sh\necho $MIGRATION_STATE >> {place}/$MIGRATION_ID.ended\n")
    script.chmod(0o755)
    made = Cluster(
        redis,
        place,
        reconcile=True,
        reconcile_s=0.3,
        stall_s=2,
        on_end=f"{receiver.url} {script}",
        on_end_secret=SECRET,
    )
    with made.called_by_programs():
        made.start()
        made.announce()
        yield made


@pytest.fixture(autouse=True)
def awake(receiver: Receiver) -> None:
    """Begin each test with a receiver that has heard nothing and takes everything."""
    receiver.status = 204
    receiver.heads.clear()
    receiver.bodies.clear()


def heard(receiver: Receiver, migration: str) -> list[str]:
    """Return the ends of a migration of which a receiver has heard."""
    ends = [body["data"] for body in receiver.notices]
    return [end["state"] for end in ends if end["id"] == migration]


def noted(cluster: Cluster, migration: str) -> dict[str, NoticeRecord]:
    """Return what the ledger has of the calls, by whom they were for."""
    account = cluster.ledger.account(migration)
    notices = account.notices if account else ()
    return {"file" if each.target[0] == "/" else "web": each for each in notices}


def begun(cluster: Cluster, **acting: str) -> Message:
    """Send a migration whose steps act so, and return it."""
    message = cluster.migration(4242, **acting)
    migrate.apply_async(kwargs=message.plan.to_json(), task_id=message.id)
    return message


def test_both_are_called_and_people_see_it(cluster: Cluster, receiver: Receiver) -> None:
    """With the result that ``.get()`` gives, once each."""
    message = begun(cluster)
    eventually(lambda: len(noted(cluster, message.id)) == 2, within_s=30)
    assert heard(receiver, message.id) == ["completed"]
    assert (cluster.place / f"{message.id}.ended").read_text() == "completed\n"
    result = cluster.app.AsyncResult(message.id).get(timeout=10)
    (notice,) = receiver.notices
    assert notice["data"] == result | {"batch": None, "asked_by": str(current())}
    assert {each.outcome for each in noted(cluster, message.id).values()} == {"delivered"}
    shown = json.loads(sojourn(cluster, "show", message.id, "--json").stdout)
    assert {each["answer"] for each in shown["notices"]} >= {"it ended with exit code 0"}
    text = sojourn(cluster, "show", message.id).stdout
    assert "on_end completed: delivered from" in text
    assert "of=sojourn" not in text


@pytest.mark.parametrize(
    ("acting", "state"), [({"second": "fail"}, State.ROLLED_BACK), ({}, State.REFUSED)]
)
def test_an_end_that_nobody_wanted(
    cluster: Cluster, receiver: Receiver, acting: dict[str, str], state: State
) -> None:
    """One that was rolled back, and one that could not begin."""
    if state is State.REFUSED:
        cluster.registry.cordon("beta")
    try:
        message = begun(cluster, **acting)
        eventually(lambda: heard(receiver, message.id), within_s=30)
    finally:
        cluster.registry.uncordon("beta")
    assert heard(receiver, message.id) == [state]


def test_a_doubt_is_reported_too(cluster: Cluster, receiver: Receiver) -> None:
    """When a person is needed most; the end that follows is another notice."""
    message = cluster.migration()
    cluster.ledger.open(message.id, message.plan)
    record_doubt(message, "beta does not answer.")
    record_doubt(message, "beta does not answer.")
    # The doubt was recorded by this process, which is no host's, and whose outbox nobody empties.
    outbox = Outbox(cluster.settings("tester").outbox)
    assert list(outbox.waiting().values()) == [1, 1]
    owed = outbox.due(Target(receiver.url))
    assert owed is not None
    assert (owed.notice.type, owed.notice.migration) == ("migration.in_doubt", message.id)


def test_an_outbox_that_cannot_be_written(cluster: Cluster, receiver: Receiver) -> None:
    """The migration ends all the same, and the log has it."""
    files = [cluster.settings(host).outbox for host in cluster.hosts]
    for file in files:
        file.rename(file.with_suffix(".kept"))
        file.mkdir()
    try:
        message = begun(cluster)
        assert cluster.app.AsyncResult(message.id).get(timeout=60)["state"] == "completed"
        said = "Nobody is called for the end"
        eventually(lambda: any(said in cluster.log(host) for host in cluster.hosts))
        assert heard(receiver, message.id) == []
    finally:
        for file in files:
            file.rmdir()
            file.with_suffix(".kept").rename(file)


def test_a_worker_that_dies_and_a_redis_that_is_away(cluster: Cluster, receiver: Receiver) -> None:
    """What is owed lies on the host's own disk; the delivery needs nobody else."""
    receiver.status = 503
    message = begun(cluster)
    eventually(lambda: "web" in noted(cluster, message.id), within_s=30)
    record = noted(cluster, message.id)["web"]
    assert (record.outcome, record.answer[-12:]) == ("failed", "answered 503")
    host = record.host
    assert "failed: http://127.0.0.1" in cluster.log(host)
    cluster.workers[host].kill()
    cluster.redis.stop()
    try:
        receiver.status = 204
        before = len(receiver.bodies)
        cluster.workers[host] = cluster.worker(host)
        eventually(lambda: len(receiver.bodies) > before, within_s=60)
        assert heard(receiver, message.id)[-1] == "completed"
    finally:
        cluster.redis.start()
    metrics = {
        (sample.name, sample.labels["outcome"]): sample.value
        for family in HostCollector(Host(cluster.settings(host)), Counted({}, {}, {})).collect()
        for sample in family.samples
        if sample.labels.get("target", "").startswith("http")
        if "outcome" in sample.labels
    }
    assert metrics["sojourn_worker_notices_total", "failed"] >= 1
    assert metrics["sojourn_worker_notices_total", "delivered"] >= 1
