"""A migration's limits travel from who asks to both hosts; the settings' are those it lacks."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from typing import Any

import pytest

from sojourn.client import drain, migrate, migrate_many
from sojourn.cluster.batches import Batches
from sojourn.cluster.registry import Pace
from sojourn.errors import UsageError
from sojourn.model import Json, Phase, Plan, Role, Verdict
from sojourn.state.facts import Facts
from sojourn.state.message import Message
from tests.integration.conftest import Cluster, Redis
from tests.integration.test_capacity import sojourn
from workflows.app import the_app
from workflows.conclude import close

#: What the settings of all hosts have.
SITE_MBIT, SITE_FREEZE_S = 700, 50.0

ROUTE: Any = {"pid": 4242, "source": "alpha", "destination": "beta"}

#: An end of a migration that has sent 100 MB within a second.
ENDED: Facts = {
    "verdict": Verdict.RESTORED,
    "source_phase": Phase.RETIRED,
    "pages_bytes": 100_000_000,
    "freeze_started": 10.0,
    "frozen_at": 10.0,
    "images_sent": 11.0,
    "images_at": 21.0,
    "resumed_at": 21.0,
}


@pytest.fixture(scope="module")
def cluster(redis: Redis, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Give out three hosts whose settings have limits."""
    place = tmp_path_factory.mktemp("cluster")
    limits = {"bandwidth_mbit": SITE_MBIT, "max_freeze_s": SITE_FREEZE_S}
    made = Cluster(redis, place, reconcile=True, hosts=("alpha", "beta", "gamma"), **limits)
    with made.called_by_programs():
        made.start()
        made.announce()
        yield made


def limits(cluster: Cluster, migration: str) -> tuple[int | None, float]:
    """Return the limits of a migration, which its ledger and both journals have alike."""
    account = cluster.ledger.account(migration)
    assert account is not None
    for role in Role:
        entry = cluster.journal(account.plan.host_of(role)).entry(migration, role)
        assert entry is not None
        assert entry.plan == account.plan
    return account.plan.bandwidth_mbit, account.plan.max_freeze_s


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({}, (SITE_MBIT, SITE_FREEZE_S)),
        ({"bandwidth_mbit": 100}, (100, SITE_FREEZE_S)),
        ({"bandwidth_mbit": None, "max_freeze_s": 7.5}, (None, 7.5)),
    ],
    ids=str,
)
def test_from_a_program(cluster: Cluster, asked: Json, expected: Any) -> None:
    """What is asked for counts, also that there shall be no limit; else what the settings have."""
    answer = migrate.delay(**ROUTE, **asked)
    assert answer.get(timeout=20)["state"] == "completed"
    assert limits(cluster, answer.id) == expected


def test_from_a_program_with_nonsense(cluster: Cluster) -> None:
    """One sentence, and no host has heard of it."""
    before = {account.id for account in cluster.ledger.latest(100)}
    with pytest.raises(UsageError, match="A bandwidth is a whole number of megabits per second"):
        migrate.delay(**ROUTE, bandwidth_mbit=0)
    assert {account.id for account in cluster.ledger.latest(100)} == before


@contextlib.contextmanager
def tree_on_gamma(cluster: Cluster) -> Iterator[None]:
    """Let gamma have one tree that can be migrated."""
    file = cluster.place / "gamma.trees"
    file.write_text(json.dumps([os.getpid()]))
    try:
        yield
    finally:
        file.unlink()
        cluster.registry.uncordon("gamma")


def limits_of_the_one(cluster: Cluster, *words: str) -> tuple[int | None, float]:
    """Run a command that migrates the tree on gamma, and return the limits that it had."""
    with tree_on_gamma(cluster):
        done = sojourn(cluster, *words, "--json")
    assert done.returncode == 0, done.stdout
    (end,) = json.loads(done.stdout.splitlines()[-1])["migrations"]
    return limits(cluster, end["id"])


@pytest.mark.parametrize(
    "command", ["drain gamma", "migrate --all --from gamma --to beta"], ids=lambda text: text[:7]
)
def test_from_the_command_line(cluster: Cluster, command: str) -> None:
    """Each migration of a batch has the limits that were asked for, or those of the settings."""
    assert limits_of_the_one(cluster, *command.split()) == (SITE_MBIT, SITE_FREEZE_S)
    options = ("--bandwidth", "100", "--max-freeze", "7.5")
    assert limits_of_the_one(cluster, *command.split(), *options) == (100, 7.5)


@pytest.mark.parametrize(
    "command", ["drain gamma", "migrate --all --from gamma --to beta"], ids=lambda text: text[:7]
)
def test_the_mode_from_the_command_line(cluster: Cluster, command: str) -> None:
    """Each migration of a batch has the mode that was asked for, and it is shown."""
    with tree_on_gamma(cluster):
        words = (*command.split(), "--mode", "post-copy", "--json")
        batch = json.loads(sojourn(cluster, *words).stdout.splitlines()[-1])
    (end,) = batch["migrations"]
    shown = sojourn(cluster, "show", end["id"]).stdout
    assert f"mode post-copy, at most {SITE_MBIT} Mbit/s" in shown
    account = cluster.ledger.account(end["id"])
    assert account is not None
    assert account.plan.post_copy


def test_of_a_plan_file(cluster: Cluster) -> None:
    """Each line has its own."""
    lines: list[Any] = [ROUTE, {**ROUTE, "pid": 4243, "bandwidth_mbit": 100, "max_freeze_s": 7.5}]
    result = migrate_many.delay(lines).get(timeout=30)
    found = {end["pid"]: limits(cluster, end["id"]) for end in result["migrations"]}
    assert found == {4242: (SITE_MBIT, SITE_FREEZE_S), 4243: (100, 7.5)}


@pytest.mark.parametrize("option", ["--bandwidth", "--max-freeze"])
def test_a_drain_with_nonsense(cluster: Cluster, option: str) -> None:
    """One sentence, exit code 2, and the host is not even cordoned."""
    batches = Batches(cluster.store, 3600)
    before = batches.latest(100)
    done = sojourn(cluster, "drain", "gamma", option, "0")
    assert done.returncode == 2
    assert done.stderr.startswith(("error: A bandwidth is", "error: A freeze may last"))
    assert not cluster.registry.is_cordoned("gamma")
    assert batches.latest(100) == before


@pytest.mark.parametrize("options", [{"bandwidth_mbit": 0}, {"pid": 5}, {"speed": 5}], ids=str)
def test_a_drain_by_a_program_with_nonsense(cluster: Cluster, options: Json) -> None:
    """The same for programs, whatever they call an option."""
    with pytest.raises(UsageError):
        drain.delay("gamma", **options).get(timeout=20)
    assert not cluster.registry.is_cordoned("gamma")


def _ended(cluster: Cluster, bandwidth_mbit: int | None) -> Pace | None:
    """Conclude a migration that arrived, and return the pace that is known then."""
    plan = Plan(4242, "alpha", "beta", bandwidth_mbit=bandwidth_mbit)
    message = Message(cluster.message().id, plan, ENDED)
    cluster.ledger.open(message.id, plan)
    assert close(the_app(), message)["frozen_ms"] == 1000
    return cluster.registry.pace("alpha", "beta")


def test_the_pace_under_a_limit_is_not_remembered(cluster: Cluster) -> None:
    """It would show the limit, and not how fast memory crosses between the two hosts."""
    assert _ended(cluster, 100) is None
    assert _ended(cluster, None) == Pace(100_000_000, 1000)
    assert _ended(cluster, 100) == Pace(100_000_000, 1000)
