"""Who asked for what: on the host that was asked, and as a copy in Redis."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from sojourn.client import drain, migrate, migrate_many
from sojourn.cluster.audit import ACCEPTED, MOST_BYTES, REFUSED, STREAM, Entry, Trail
from sojourn.cluster.client import Cluster as Client
from sojourn.cluster.queue import Standing
from sojourn.errors import Aborted, MigrationError, UsageError
from sojourn.messaging.client import the_client
from sojourn.messaging.names import MIGRATE
from sojourn.model import Failure
from sojourn.state.message import Message
from sojourn.system.caller import Caller, acting_for
from tests.conftest import eventually
from tests.integration.conftest import Cluster, Redis
from tests.integration.steps import act, let_go
from tests.integration.test_capacity import sojourn
from workflows import intervene, recover
from workflows.batch import abort_batch, resume_batch

ALICE = Caller("alice", 1000, "ops1", "sojourn")


@pytest.fixture(scope="module")
def cluster(redis: Redis, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Give out two hosts with reconcilers."""
    place = tmp_path_factory.mktemp("cluster")
    made = Cluster(redis, place, reconcile=True, reconcile_s=0.3, lease_s=2)
    with made.called_by_programs(), acting_for(ALICE):
        made.start()
        made.announce()
        yield made


@pytest.fixture
def trail(cluster: Cluster) -> Trail:
    """Give out a reader of the copy in Redis."""
    return Trail(cluster.store, cluster.place / "nowhere", "tester")


def own(cluster: Cluster) -> list[Entry]:
    """Return what all hosts have in files of their own."""
    return [
        entry
        for host in cluster.hosts
        for entry in Trail(cluster.store, cluster.settings(host).audit, host).own()
    ]


def about(cluster: Cluster, trail: Trail, subject: str) -> list[tuple[str, str, str]]:
    """Return what was asked about something: action, outcome and user.

    The files of the hosts and the copy in Redis must have the same.
    """

    def asked(entries: list[Entry]) -> list[tuple[str, str, str]]:
        of_it = sorted(
            (entry for entry in entries if entry.subject == subject), key=lambda entry: entry.at
        )
        return [(entry.action, entry.outcome, str(entry.caller)) for entry in of_it]

    eventually(lambda: asked(own(cluster)) == asked(trail.copies()), within_s=30)
    return asked(own(cluster))


def test_a_migration(cluster: Cluster, trail: Trail) -> None:
    """The host that takes the request has it, with the user whom the message claims."""
    answer = migrate.delay(pid=4242, source="alpha", destination="beta")
    answer.get(timeout=60)
    assert about(cluster, trail, answer.id) == [("migrate", ACCEPTED, "alice@ops1")]
    (entry,) = (entry for entry in own(cluster) if entry.subject == answer.id)
    assert (entry.user, entry.uid, entry.came_from, entry.via) == ("alice", 1000, "ops1", "sojourn")
    assert entry.what == "pid 4242 from alpha to beta"
    assert "asked for by alice@ops1" in sojourn(cluster, "show", answer.id).stdout
    account = cluster.ledger.account(answer.id)
    assert account is not None
    assert account.asked_by == "alice@ops1"


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        ({"pid": 1, "source": "alpha", "destination": "beta"}, "PID 1 is the host's init"),
        ({"pid": 4242, "source": "alpha", "destination": "omega"}, "There is no host omega"),
    ],
)
def test_a_migration_that_is_refused(
    cluster: Cluster, trail: Trail, asked: dict[str, Any], why: str
) -> None:
    """With the reason, also where the message was not checked by who sent it."""
    answer = the_client().send_task(MIGRATE, (), asked)
    with pytest.raises((UsageError, MigrationError)):
        answer.get(timeout=60)
    assert about(cluster, trail, answer.id) == [("migrate", REFUSED, "alice@ops1")]
    (entry,) = (entry for entry in own(cluster) if entry.subject == answer.id)
    assert why in entry.why


def test_a_batch(cluster: Cluster, trail: Trail) -> None:
    """Asked for, aborted and resumed, each by whom; a bad one is refused."""
    lines = [{"pid": 1000 + each, "source": "alpha", "destination": "beta"} for each in (1, 2)]
    cluster.queue.pause("audited-batch")
    answer = migrate_many.apply_async(args=(lines,), task_id="audited-batch")
    eventually(lambda: cluster.queue.counts().waiting == 2, within_s=60)
    with acting_for(Caller.named("ann in Flower")):
        abort_batch.delay(answer.id, roll_back=False).get(timeout=60)
    assert answer.get(timeout=60)["by"] == "alice@ops1"
    resume_batch.delay(answer.id).get(timeout=60)
    assert sojourn(cluster, "batch", answer.id, "pause").returncode in {0, 2}
    actions = about(cluster, trail, answer.id)[:3]
    assert actions == [
        ("migrate many", ACCEPTED, "alice@ops1"),
        ("abort batch", ACCEPTED, "ann in Flower"),
        ("resume batch", ACCEPTED, "alice@ops1"),
    ]
    bad = drain.delay("omega")
    with pytest.raises(UsageError):
        bad.get(timeout=30)
    assert about(cluster, trail, bad.id) == [("drain", REFUSED, "alice@ops1")]


def _has_ended(cluster: Cluster, message: Message) -> bool:
    state = cluster.state(message)
    return state is not None and state.definite


def _is_recorded(cluster: Cluster, trail: Trail, message: Message) -> bool:
    """Whether the trail has who asked for it, and who aborted it."""
    return about(cluster, trail, message.id) == [
        ("migrate", ACCEPTED, "alice@ops1"),
        ("abort", ACCEPTED, "bob@ops2"),
    ]


def test_an_abort(cluster: Cluster, trail: Trail) -> None:
    """Of one that waits, and of one that is under way."""
    waits, runs = cluster.migration(4301), cluster.migration(4302)
    cluster.queue.pause(waits.id)
    act(cluster.place, runs.id, {"first": "wait"})
    for message in (waits, runs):
        migrate.apply_async(kwargs=message.plan.to_json(), task_id=message.id)
    eventually(lambda: any("first" in line for line in cluster.acts(runs)), within_s=60)
    eventually(lambda: cluster.queue.standing(waits.id) is Standing.WAITING, within_s=60)
    account = cluster.ledger.account(waits.id)
    assert account is not None
    assert intervene.abort(Client(cluster.settings("tester")), account, "bob@ops2").sentence
    cluster.ledger.record_failure(runs.id, Failure(Aborted.code, "Aborted."))
    recover.abort(runs, by="bob@ops2")
    let_go(cluster.place, runs.id)
    for message in (waits, runs):
        # Whatever it came to: steps that do nothing may be through before the abort.
        eventually(partial(_is_recorded, cluster, trail, message), within_s=60)
        eventually(partial(_has_ended, cluster, message), within_s=60)
    cluster.queue.resume(waits.id)


def test_a_cordon_is_recorded_by_its_host(cluster: Cluster) -> None:
    """By the command line; any host shows its own, and the cluster's copy, to people."""
    assert sojourn(cluster, "cordon", "beta").returncode == 0
    assert sojourn(cluster, "uncordon", "beta").returncode == 0

    def of_beta() -> list[dict[str, Any]]:
        shown = sojourn(cluster, "audit", "--host", "beta", "--since", "1h", "--json")
        return [entry for entry in json.loads(shown.stdout) if entry["subject"] == "beta"]

    eventually(lambda: len(of_beta()) == 2, within_s=30)
    assert [entry["action"] for entry in of_beta()] == ["cordon", "uncordon"]
    entry = of_beta()[0]
    assert (entry["host"], entry["via"]) == ("beta", "sojourn")
    assert entry["time"].endswith("+00:00")
    copy = json.loads(sojourn(cluster, "audit", "--user", entry["user"], "--json").stdout)
    assert entry in copy
    assert json.loads(sojourn(cluster, "audit", "--user", "nobody", "--json").stdout) == []
    rows = sojourn(cluster, "audit").stdout
    assert "uncordon" in rows
    assert json.loads(sojourn(cluster, "audit", "--here", "--json").stdout) == []
    assert sojourn(cluster, "audit", "--here", "--host", "beta").returncode == 2
    cluster.settings("tester").state_dir.mkdir(exist_ok=True)
    cluster.settings("tester").audit.touch()
    unread = sojourn(cluster, "audit", "--here")
    assert (unread.returncode, "cannot be read" in unread.stderr) == (1, True)


def test_what_somebody_puts_into_redis_is_not_shown(cluster: Cluster, trail: Trail) -> None:
    """Without the key nothing can be added, changed or doubled there; files cannot be reached."""
    answer = migrate.delay(pid=4242, source="alpha", destination="beta")
    answer.get(timeout=60)
    before = eventually(lambda: [e for e in trail.copies() if e.subject == answer.id])
    (ours,) = [
        fields for fields in cluster.store.newest(STREAM, 10_000) if answer.id in fields["entry"]
    ]
    forged = {**vars(before[0]), "id": "forged", "user": "mallory"}
    for name, text in (
        ("forged", json.dumps(forged)),
        ("forged", ours["entry"]),
        (ours["id"], ours["entry"].replace("alice", "carol")),
        (ours["id"], ours["entry"]),
        ("odd", "[]"),
    ):
        cluster.store.write([["XADD", STREAM, "*", "id", name, "entry", text]])
    assert [e for e in trail.copies() if e.subject == answer.id] == before
    assert "mallory" not in str(trail.copies())
    cluster.store.delete(STREAM)
    assert trail.copies() == []
    assert answer.id in {entry.subject for entry in own(cluster)}


def test_a_file_of_a_host(redis: Redis, tmp_path: Path, cluster: Cluster) -> None:
    """Only appended to, root's alone, bounded, and removed by the day; a torn line costs itself."""
    trail = Trail(cluster.store, tmp_path / "audit", "alpha")
    trail.record(ALICE, "migrate", "one\nline", "\x1b[2J", refused="x" * 5000)
    (file,) = (tmp_path / "audit").iterdir()
    assert (file.stat().st_mode & 0o777, file.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    with file.open("a") as more:
        more.write('{"id": "torn\n')
    trail.record(ALICE, "abort", "two")
    first, second = trail.own()
    assert (first.subject, first.what, len(first.why)) == (r"one\nline", r"\x1b[2J", 300)
    assert second.subject == "two"
    assert list(trail.own(since=second.at)) == [second]
    with file.open("a") as more:
        more.truncate(MOST_BYTES + 1)
    trail.record(ALICE, "abort", "three")
    assert "three" not in file.read_bytes()[-1000:].decode()
    old = file.with_name("2020-02-28.jsonl")
    file.rename(old)
    trail.record(ALICE, "abort", "four")
    trail.forget(before=first.at - 86_400)
    assert [entry.subject for entry in trail.own()] == ["four"]
    assert not old.exists()
