"""``sojourn.logs`` on two real workers: a host reads its own files, a silent one hides none."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from sojourn.model import Role
from sojourn.settings import override
from sojourn.state.message import Message
from tests.integration.conftest import KEY, PLAN, Cluster
from workflows.app import the_app
from workflows.logs import logs_of


@pytest.fixture
def caller(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """Act as a program with the cluster's settings."""
    monkeypatch.setenv("SOJOURN_REDIS_URL", cluster.redis.url)
    monkeypatch.setenv("SOJOURN_KEY", KEY)
    monkeypatch.setenv("SOJOURN_CONFIG", "/dev/null")
    override()
    the_app.cache_clear()
    yield cluster
    the_app().backend.result_consumer.subscribed_to.clear()
    the_app.cache_clear()
    override()


def _migration(cluster: Cluster) -> Message:
    """Return a migration that both hosts know, with a log on each."""
    message = cluster.message()
    for host, role, name in (
        ("alpha", Role.SOURCE, "dump.log"),
        ("beta", Role.DESTINATION, "restore.log"),
    ):
        cluster.journal(host).open(message.id, role, PLAN)
        log = _runtime(cluster, host) / message.id / "work" / name
        log.parent.mkdir(parents=True)
        log.write_text(f"(00.1) on {host}\n(00.2) Error (criu/x.c:1): {host} broke it\n")
    return message


def _runtime(cluster: Cluster, host: str) -> Path:
    return cluster.settings(host).runtime_dir


def test_every_host_sends_its_own_logs(caller: Cluster) -> None:
    """By host, with paths; the results do not stay in Redis."""
    message = _migration(caller)
    found = logs_of(message.id, ["alpha", "beta"], only_errors=False)
    alpha, beta = found["alpha"], found["beta"]
    assert alpha is not None
    assert beta is not None
    assert [Path(log.path).name for log in (*alpha, *beta)] == ["dump.log", "restore.log"]
    assert alpha[0].text.startswith("(00.1) on alpha\n")
    assert not [
        key
        for key in caller.app.backend.client.keys("celery-task-meta-*")
        if "sojourn.logs" in str(key)
    ]


def test_only_hosts_that_were_asked_and_only_errors(caller: Cluster) -> None:
    """The worker is asked for nothing else."""
    message = _migration(caller)
    found = logs_of(message.id, ["beta"], only_errors=True)
    assert list(found) == ["beta"]
    assert [log.whole for log in found["beta"] or []] == [False]


def test_an_id_is_not_used_as_a_path(caller: Cluster) -> None:
    """Only logs of migrations in the journal are read, whatever other files there are."""
    outside = _runtime(caller, "alpha").parent / "outside" / "work"
    outside.mkdir(parents=True, exist_ok=True)
    (outside / "dump.log").write_text("not yours")
    assert logs_of("../outside", ["alpha"], only_errors=False) == {"alpha": []}


def test_a_host_that_does_not_answer(caller: Cluster) -> None:
    """It is reported, and the other's logs are there all the same."""
    message = _migration(caller)
    caller.workers["beta"].kill()
    found = logs_of(message.id, ["alpha", "beta"], only_errors=False)
    assert found["beta"] is None
    assert [Path(log.path).name for log in found["alpha"] or []] == ["dump.log"]
