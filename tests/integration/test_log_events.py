"""The log of a migration, as its hosts' workers write it: each change of phase is one event, on its host."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from sojourn import commit
from sojourn.journal import lock
from sojourn.model import Message, Phase, Role
from tests.conftest import eventually
from tests.integration.conftest import PLAN, Cluster, Redis
from tests.integration.steps import PHASED, roll_back
from workflows.canvas import forward
from workflows.conclude import conclude

#: As in test_canvas.py.
ROLES = {"alpha": Role.SOURCE, "beta": Role.DESTINATION}
ENDS = {"alpha": Phase.RETIRED, "beta": Phase.RESTORED}

TEXT = re.compile(
    r"^[\d:.]+ (?P<level>\w+) (?P<migration>[0-9a-f-]{12}) (?P<step>\w+) (?P<host>\w+): "
    r"(?:opened as|from (?P<from>\w+) to) (?P<to>\w+)$",
    re.MULTILINE,
)


@pytest.fixture(scope="module", params=["text", "json"])
def form(request: pytest.FixtureRequest) -> str:
    """Give out both forms of the log."""
    return str(request.param)


@pytest.fixture(scope="module")
def logged(form: str, redis: Redis, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Start a cluster whose workers log in that form, with reconcilers."""
    place = tmp_path_factory.mktemp(form)
    made = Cluster(redis, place, reconcile=True, log_format=form, reconcile_s=0.2, stall_s=0.5)
    try:
        made.start()
        yield made
    finally:
        made.stop()


def _transitions(cluster: Cluster, form: str, host: str, message: Message) -> list[dict[str, Any]]:
    """Return the events of a migration's changes of phase that a host's worker has logged."""
    if form == "text":
        found = [each.groupdict() for each in TEXT.finditer(cluster.log(host))]
        return [each for each in found if message.id.startswith(each["migration"])]
    lines = [json.loads(line) for line in cluster.log(host).splitlines() if line.startswith("{")]
    return [line for line in lines if line.get("migration") == message.id and line["logger"] == "sojourn.journal"]


def _path(events: list[dict[str, Any]]) -> list[str]:
    """Return the phases that events tell of, each going on where the one before ended."""
    assert [each["from"] for each in events] == [None, *(each["to"] for each in events[:-1])]
    return [each["to"] for each in events]


def test_each_change_of_phase_is_one_event(logged: Cluster, form: str) -> None:
    """The journals' phases and the events agree, one by one, also for those that CRIU's action script writes."""
    message = logged.message()
    logged.ledger.open(message.id, message.plan)
    forward(PHASED, message, conclude, roll_back).apply_async()
    logged.app.AsyncResult(message.id).get(timeout=20)
    for host, role in ROLES.items():
        events = _transitions(logged, form, host, message)
        assert _path(events) == logged.journal(host).passed(message.id, role)
        assert events[-1]["to"] == logged.phase(message, host) == ENDS[host]
        assert {each["host"] for each in events} == {host}
    assert [each["step"] for each in _transitions(logged, form, "alpha", message)] == [
        *("test_zeroth", "test_freeze", "test_freeze", "test_freeze", "test_leave"),
    ]
    assert {each["step"] for each in _transitions(logged, form, "beta", message)} == {"test_zeroth", "test_arrive"}


def test_both_hosts_log_the_end_under_the_same_id(logged: Cluster, form: str) -> None:
    """One of them says how it ended; text shows the beginning of the id."""
    message = logged.message()
    logged.ledger.open(message.id, message.plan)
    forward(PHASED, message, conclude, roll_back).apply_async()
    logged.app.AsyncResult(message.id).get(timeout=20)
    name = message.id if form == "json" else message.id[:12]
    lines = [line for host in ROLES for line in logged.log(host).splitlines() if name in line]
    told = [line for line in lines if "pid 4242 from alpha to beta: " in line]
    assert len(told) == 1
    assert "completed" in told[0]
    assert all(name in logged.log(host) for host in ROLES)


@pytest.mark.parametrize("held", [True, False], ids=["held", "at rest"])
def test_what_was_written_by_one_that_died_is_logged_by_the_reconciler(
    logged: Cluster, form: str, *, held: bool
) -> None:
    """CRIU's action script committed, and the worker did not live to say so; others may have cleaned up since."""
    message, journal = logged.message(), logged.journal("beta")
    with lock(logged.settings("beta").runtime_dir / message.id / "lock", 5):  # it is looked at when all is written
        entry = journal.advance(journal.open(message.id, Role.DESTINATION, PLAN), Phase.RESTORING)
        if held:
            journal.hold(entry, "mount", "/nowhere")
        for moment in commit.TRANSITIONS:
            assert commit.main(str(journal.path), message.id, moment) == 0
    eventually(lambda: len(_transitions(logged, form, "beta", message)) == 2)
    events = _transitions(logged, form, "beta", message)
    assert [(each["from"], each["to"], each["step"]) for each in events] == [
        ("restoring", "accepted", "reconcile"),
        ("accepted", "restored", "reconcile"),
    ]
