"""The log of a migration on both hosts: each change of phase is one event, on its host."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from sojourn.model import Phase, Role
from sojourn.state.lock import lock
from sojourn.state.message import Message
from tests.conftest import eventually
from tests.integration.conftest import PLAN, Cluster, Redis
from tests.integration.steps import PHASED, commit_there
from workflows.canvas import forward

ROLES = {"alpha": Role.SOURCE, "beta": Role.DESTINATION}
ENDS = {"alpha": Phase.RETIRED, "beta": Phase.RESTORED}

TEXT = re.compile(
    r"^[\d:.]+ (?P<level>\w+) (?P<migration>[0-9a-f-]{12}) (?P<step>\w+) (?P<host>\w+): "
    r"(?:opened as|from (?P<from>\w+) to) (?P<to>\w+)$",
    re.MULTILINE,
)


@pytest.fixture(scope="module", params=["text", "json"])
def form(request: pytest.FixtureRequest) -> str:
    """Run the tests with both formats of the log."""
    return str(request.param)


@pytest.fixture(scope="module")
def logged(form: str, redis: Redis, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Start a cluster whose workers log in that format, with reconcilers."""
    place = tmp_path_factory.mktemp(form)
    made = Cluster(redis, place, reconcile=True, log_format=form, reconcile_s=0.2, stall_s=0.5)
    try:
        made.start()
        yield made
    finally:
        made.stop()


def _transitions(cluster: Cluster, form: str, host: str, message: Message) -> list[dict[str, Any]]:
    """Return the changes of a migration's phase that a host's worker has logged."""
    if form == "text":
        events = [found.groupdict() for found in TEXT.finditer(cluster.log(host))]
        return [event for event in events if message.id.startswith(event["migration"])]
    lines = [json.loads(line) for line in cluster.log(host).splitlines() if line.startswith("{")]
    return [
        line
        for line in lines
        if line.get("migration") == message.id and line["logger"] == "sojourn.journal"
    ]


def _path(events: list[dict[str, Any]]) -> list[str]:
    """Return the phases of the events, of which each begins where the one before ended."""
    assert [event["from"] for event in events] == [None, *(event["to"] for event in events[:-1])]
    return [event["to"] for event in events]


def test_each_change_of_phase_is_one_event(logged: Cluster, form: str) -> None:
    """Journals and events agree, one by one, also on phases that the rebuilder wrote."""
    message = logged.message()
    logged.ledger.open(message.id, message.plan)
    forward(PHASED, message, errback="test.roll_back").apply_async()
    logged.app.AsyncResult(message.id).get(timeout=20)
    for host, role in ROLES.items():
        events = _transitions(logged, form, host, message)
        assert _path(events) == logged.journal(host).passed(message.id, role)
        assert events[-1]["to"] == logged.phase(message, host) == ENDS[host]
        assert {event["host"] for event in events} == {host}
    assert [event["step"] for event in _transitions(logged, form, "alpha", message)] == [
        *("test_zeroth", "test_freeze", "test_freeze", "test_freeze", "test_leave"),
    ]
    assert {event["step"] for event in _transitions(logged, form, "beta", message)} == {
        "test_zeroth",
        "test_arrive",
    }


def test_both_hosts_log_the_end_under_the_same_id(logged: Cluster, form: str) -> None:
    """One of them logs the outcome; the text format shows the first characters of the id."""
    message = logged.message()
    logged.ledger.open(message.id, message.plan)
    forward(PHASED, message, errback="test.roll_back").apply_async()
    logged.app.AsyncResult(message.id).get(timeout=20)
    name = message.id if form == "json" else message.id[:12]
    lines = [line for host in ROLES for line in logged.log(host).splitlines() if name in line]
    (outcome,) = [line for line in lines if "pid 4242 from alpha to beta: " in line]
    assert "completed" in outcome
    assert all(name in logged.log(host) for host in ROLES)


@pytest.mark.parametrize("held", [True, False], ids=["held", "at rest"])
def test_the_reconciler_logs_phases_whose_writer_died(
    logged: Cluster, form: str, *, held: bool
) -> None:
    """The rebuilder committed and the worker died before it logged that.

    Others may have cleaned up since (``at rest``), or not (``held``).
    """
    message, journal = logged.message(), logged.journal("beta")
    # The lock keeps the reconciler away until every phase is written.
    with lock(logged.settings("beta").runtime_dir / message.id / "lock", 5):
        entry = journal.advance(journal.open(message.id, Role.DESTINATION, PLAN), Phase.RESTORING)
        if held:
            journal.hold(entry, "mount", "/nowhere")
        commit_there(journal.path, message.id)
    eventually(lambda: len(_transitions(logged, form, "beta", message)) == 2)
    events = _transitions(logged, form, "beta", message)
    assert [(event["from"], event["to"], event["step"]) for event in events] == [
        ("restoring", "accepted", "reconcile"),
        ("accepted", "restored", "reconcile"),
    ]
